"""The words for what a reader passed over."""

from fedfree.host.images.passed_over import PassedOver, Reason, readable, suffix_of


def test_the_report_counts_by_reason_and_shows_suffixes_or_names() -> None:
    passed_over = PassedOver(
        {
            Reason.OUTSIDE: {("stray.png",)},
            Reason.NOT_IMAGE: {("a", "notes.txt"), ("READ.TXT",)},
            Reason.HIDDEN: {(".a",), (".b",), (".c",), (".d",)},
        }
    )
    assert str(passed_over) == (
        "passed over 7 files: 4 hidden, 2 not images (.txt), 1 outside every class folder (stray.png)"
    )


def test_photographs_that_cannot_be_read_are_named_with_the_remedy() -> None:
    heic = {("cat", f"{index}.HEIC") for index in range(3)}
    assert str(PassedOver({Reason.NOT_READ: heic})) == (
        "passed over 3 files: 3 images in formats not read: convert them to JPEG (.heic)"
    )


def test_folders_are_counted_apart_from_files() -> None:
    empty = PassedOver({Reason.NO_IMAGE: {("owl",)}})
    assert str(empty) == "passed over 1 class folder without an image (owl)"
    both = PassedOver({Reason.NO_IMAGE: {("owl",)}, Reason.HIDDEN: {(".a",)}})
    assert str(both) == "passed over 1 file: 1 hidden; 1 class folder without an image (owl)"


def test_only_a_few_names_are_shown() -> None:
    outside = {(f"{index}.png",) for index in range(5)}
    assert str(PassedOver({Reason.OUTSIDE: outside})).endswith("(0.png, 1.png, 2.png, …)")


def test_nothing_passed_over_is_false() -> None:
    assert not PassedOver({}) and not PassedOver({Reason.HIDDEN: set()})
    assert PassedOver({Reason.HIDDEN: {(".a",)}})


def test_a_name_is_one_readable_line_whatever_it_holds() -> None:
    assert readable("猫 a\nb\udcff.png") == "猫 a?b?.png"


def test_the_suffix_of_a_name_has_lower_case_and_its_dot() -> None:
    assert [suffix_of(name) for name in ("a.b.PNG", "png", ".png", "a.")] == [".png", "", "", "."]
