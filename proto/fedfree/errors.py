"""Every refusal of FedFREE, and nothing else.

Messages name the offending value and what to do. A command line prints them as one line and
exits with status 2; the server quarantines a contribution with the message as its reason.
"""

MAX_CHARACTERS = 1000
"""Of what is said about something that another party sent."""


def printable(text: str, at_most: int = MAX_CHARACTERS) -> str:
    """Words that may be another party's as one short line: nothing in it moves a cursor or begins a line.

    Of too many the middle is left out: the value that an error repeats is long, and what to do comes last.
    """
    if len(text) > 8 * at_most:
        text = f"{text[: 4 * at_most]} {text[-4 * at_most :]}"
    line = " ".join(text.split())
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)
    if len(shown) <= at_most:
        return shown
    end = at_most // 4
    return f"{shown[: at_most - 1 - end]}…{shown[-end:]}"


class FedFreeError(Exception):
    """Something a person or another party gave us cannot be used; the message says what to do."""


class ConfigError(FedFreeError):
    """A configuration value or a command-line option is wrong."""


class StorageError(ConfigError):
    """A file or folder that cannot be read or written: it is missing, read-only, or the disk is full."""


class DataError(FedFreeError):
    """Images that are missing, unreadable, or too few for what was asked."""


class ContributionError(FedFreeError):
    """A contribution or meta-learner that breaks the contract.

    The message may repeat what another party sent, so it is made one short printable line here, for every
    log, file and terminal that shows it.
    """

    rule = ""
    """Name of the rule that was broken, see :mod:`fedfree.rule`; empty where it is none."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} (rule {self.rule})" if self.rule else message


class VersionError(ContributionError):
    """Two sides that are not the same FedFREE, so that they may disagree on the contract."""


class StartError(ContributionError):
    """Two sides that do not begin from the same start; the message holds hashes and a licence, no more."""


class TooMuchError(ContributionError):
    """A coordinator asks for more than the organisation's limits allow; the message says what of, no more."""


class SignatureError(ContributionError):
    """What a coordinator hands out is not signed by the key that is known here, or is older than what is."""


class PrivacyError(FedFreeError):
    """A privacy guarantee that cannot be given, or a privacy budget that is used up."""


class OutOfTimeError(FedFreeError):
    """Training took longer than the organisation's limits allow; nothing of it is kept."""


class ExtensionError(FedFreeError):
    """Something that somebody added to one of the tables failed, or gave nonsense; the message names it."""


class FederationError(FedFreeError):
    """A federation that cannot go on, for instance because nobody contributed."""


class AccessError(FedFreeError):
    """A token or certificate that is missing, wrong, expired or revoked."""


class LimitError(FederationError):
    """More, larger or faster than the server takes from one organisation."""


class NotReadyError(FederationError):
    """Something that the federation has not come to yet, for instance its meta-learner."""
