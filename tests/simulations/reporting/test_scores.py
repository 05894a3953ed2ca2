"""A result as rows of scores."""

from simulations.reporting.scores import comparison


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
