"""Code is named by people, never by a storage: a spec that lies somewhere is data.

A trial with a block of the user's own names a module to import. The sweep file of a user says so
in the user's name; a spec.json may have been written by anybody who can write there.
"""

from trainers.spec import TrialSpec
from trialstore.errors import InputError


def require_consent(spec: TrialSpec, block: str | None, place: str) -> None:
    """Raises InputError where the spec of `place` names a block other than the one that the user
    has named."""
    named = None if spec.model.block is None else spec.model.block.path
    if named is not None and named != block:
        said = f"--block {block} is another" if block else "a spec may be anybody's"
        raise InputError(
            f"{place} names the code {named} as the model's block, and {said}: importing it runs "
            f"it. If you know it and trust it, say --block {named}"
        )
