"""Whether a student of the registry carries a gate: how sure it must be to answer for itself.

Read from the folder that a gateway opens; the gate is one of the student's files, so that whoever
verifies these verifies it. Knows no gateway.
"""

from __future__ import annotations

from stillhouse.core.artefact import GATE
from stillhouse.core.errors import DataError
from stillhouse.retrain.loop import BEST
from stillhouse.retrain.registry_reader import RegistryReader
from stillhouse.retrain.registry_records import Entry
from stillhouse.serve.gate_file import GateFile, load_gate


def gate_of(registry: RegistryReader, entry: Entry) -> GateFile | None:
    """A student's gate; `None`: it carries none.

    Raises:
        DataError: it cannot be read; names the file.
    """
    student = registry.root / "objects" / entry.digest / entry.artefacts.get(BEST, "")
    path = student / GATE
    return load_gate(path) if path.is_file() else None


def gate_words(registry: RegistryReader, entry: Entry) -> str:
    """The gate in few words: its threshold with the error that it keeps."""
    try:
        gate = gate_of(registry, entry)
    except DataError:
        return "damaged"
    if gate is None:
        return "none"
    if gate.threshold is None:
        return "lets nothing through"
    return f"{gate.threshold:.3f}, error {100 * gate.error:g}%"
