"""ADAPT and PREDICT: from the meta-learner to a calibrated classifier of the organisation's new classes."""
