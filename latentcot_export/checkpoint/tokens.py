"""Which token ids begin and end a text, from `generation_config.json` and, where that is silent, `config.json`."""

from __future__ import annotations

from typing import Any, NamedTuple

from latentcot_export.checkpoint.files import regular_file
from latentcot_export.checkpoint.read import CONFIG, Checkpoint
from latentcot_export.errors import InputError
from latentcot_export.strict_json import read_object, shown

GENERATION_CONFIG = "generation_config.json"
# Every id becomes one compare per chosen token in the exported graph; Llama 3 has three.
MAX_EOS_IDS = 64


class SpecialTokens(NamedTuple):
    """Ids in [0, vocab_size). No end of text known: `eos_token_ids` is empty and generation ends by length."""

    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


def special_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """The checkpoint's special ids; `eos_token_id` may be an id or a list (repeats are dropped, the order is kept).

    A key that neither file has gives no id, not LlamaConfig's 1 and 2. Errors: InputError for other values, ids out of
    the vocabulary, or an unreadable generation_config.json.
    """
    sources: list[tuple[str, dict[str, Any]]] = []
    path = regular_file(checkpoint.folder, GENERATION_CONFIG)
    if path is not None:
        sources.append((str(path), read_object(path)))
    sources.append((str(checkpoint.folder / CONFIG), checkpoint.config))

    def ids(key: str, most: int) -> tuple[int, ...]:
        for where, source in sources:
            value = source.get(key)
            if value is None:
                continue
            listed = value if isinstance(value, list) else [value]
            for item in listed:
                if type(item) is not int or not 0 <= item < checkpoint.model.vocab_size:
                    raise InputError(
                        f"{where}: {key} is {shown(value)}, it must be made of token ids from 0 to "
                        f"{checkpoint.model.vocab_size - 1}; fix that file"
                    )
            unique = tuple(dict.fromkeys(listed))
            if len(unique) > most:
                raise InputError(f"{where}: {key} lists {len(unique)} ids, at most {most} are allowed; shorten it")
            return unique
        return ()

    eos, bos = ids("eos_token_id", MAX_EOS_IDS), ids("bos_token_id", 1)
    return SpecialTokens(eos, bos[0] if bos else None)
