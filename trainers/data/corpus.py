"""From the corpus a user named to its documents."""

from trainers.data import sources
from trainers.data.documents import Corpus, Document, Split

__all__ = ["Corpus", "Document", "Split", "open_corpus"]


def open_corpus(config: sources.Corpus) -> Corpus:
    """The corpus, its contents fingerprinted. Raises InputError for one that cannot be read."""
    # A kind's reader and its libraries are loaded only where that kind is used.
    match config:
        case sources.PythonSource():
            from trainers.data.python_source import PythonSourceCorpus

            return PythonSourceCorpus()
        case sources.TextFiles():
            from trainers.data.text_files import TextCorpus

            return TextCorpus(config)
        case sources.HubDataset():
            from trainers.data.hub_corpus import HubCorpus

            return HubCorpus(config)
