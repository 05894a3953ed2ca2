"""A result as rows of scores."""

from simulations.reporting.scores import comparison, headline


def test_rows_come_in_the_same_order_whatever_the_order_of_the_file() -> None:
    measured = {"5way1shot": {"mean": 40.0, "ci95": 0.6}}
    baselines = dict.fromkeys(("pool_concatenation", "best_single_model", "random_init"), measured)
    found = {"few_shot": measured, "baselines": baselines}
    keys = [row.key for row in comparison(found)]
    assert keys == [
        "meta_learner",
        "random_init",
        "parameter_average",
        "best_single_model",
        "pool_concatenation",
        "pooled_data",
    ]


def test_a_row_that_a_federation_has_no_use_for_is_left_out_and_what_was_not_trained_says_so() -> None:
    measured = {"5way1shot": {"mean": 40.0, "ci95": 0.6}}
    rows = {row.key: row for row in comparison({"few_shot": measured, "baselines": {}})}
    assert "public_start" not in rows and "random_init" not in rows
    assert rows["pooled_data"].absent == "not trained"
    assert rows["pooled_data"].label == "one network on everybody's images (reference: nobody may train it)"


def test_the_headline_is_the_share_of_the_way_with_its_interval() -> None:
    share = {"from": "public_start", "mean": 63.21, "ci95": 4.0}
    shares = {"5way1shot": share, "5way5shot": share | {"mean": -1.5}}
    assert headline({"share_closed": shares}) == (
        "The federation closes 63.2 ± 4.0 % in 5-way 1-shot episodes and \N{MINUS SIGN}1.5 ± 4.0 % in 5-way "
        "5-shot episodes of the way from the public start to one network on everybody's images, which nobody "
        "may train."
    )
    assert headline({}) == ""
