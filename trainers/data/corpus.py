"""From the corpus a user named to its documents."""

from trainers import spec
from trainers.data.documents import Corpus, Document, Split

__all__ = ["Corpus", "Document", "Split", "open_corpus"]


def open_corpus(config: spec.Corpus) -> Corpus:
    """The corpus, its contents fingerprinted. Raises InputError for one that cannot be read."""
    # A kind's reader and its libraries are loaded only where that kind is used.
    match config:
        case spec.PythonSource():
            from trainers.data.python_source import PythonSourceCorpus

            return PythonSourceCorpus()
        case spec.TextFiles():
            from trainers.data.text_files import TextCorpus

            return TextCorpus(config)
        case spec.HubDataset():
            from trainers.data.hub_corpus import HubCorpus

            return HubCorpus(config)
