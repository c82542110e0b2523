"""The runtime against the reference evaluator, on a machine that has both: does the evaluator tell the truth?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from acmix.toolkit import catalog
from acmix.toolkit.errors import GateError
from acmix.toolkit.execute import Interface, Reference, compare
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.verify import Compared, Proof, differ


def cross_check(
    proof: Proof,
    compared: Sequence[Sequence[Compared]],
    references: Iterable[Reference],
    interface: Interface,
    request: SessionRequest,
    log: Path,
) -> Proof:
    """The proof, with how far the target's reference evaluator is from the runtime on the same samples.

    compared: what the runtime gave, sample by sample; request: how it was loaded.  The proof comes back as it is where
    it is the reference's own, or the target has none. The difference is reported and decides nothing: the file is
    proven by its runtime. A reference that fails is reported with its error.
    """
    if request.reference or catalog.load_target(request.target).reference is None:
        return proof
    try:
        with open_session(replace(request, reference=True), log) as session:
            session.load()
            others = list(compare(session, references, interface))
    except GateError as error:
        return replace(proof, reference_error=str(error).partition("\n")[0])
    names = [agreement.output for agreement in proof.agreements]
    return replace(proof, differences=differ(names, compared, others))
