"""Makes the training data: tokenizer, token files and held-out text from the Python documentation's sources.

    python examples/train/corpus.py --text FOLDER --out build/train

FOLDER is searched for `*.rst` and `*.rst.txt`, e.g. the Doc folder of a CPython source tree or, on Debian,
`apt-get download python3.11-doc && dpkg -x python3.11-doc_*.deb FOLDER`. Licence of that text: PSF-2.0.
One file in twenty, chosen by the hash of its name, is held out; the held-out text never enters the tokenizer either.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def held_out(name: str) -> bool:
    """True for one file name in twenty, whatever else the folder contains."""
    return hashlib.sha256(name.encode()).digest()[0] % 20 == 0


def main() -> None:
    """Reads the folder, writes `tokenizer.json`, `train.npy`, `heldout.npy`, `heldout.txt` and `corpus.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--heldout-bytes", type=int, default=200_000, help="most held-out text that ships")
    args = parser.parse_args()
    files = sorted(p for pattern in ("*.rst", "*.rst.txt") for p in args.text.rglob(pattern) if p.is_file())
    # the change logs are a third of the text and almost all one-line entries
    files = [p for p in files if not p.name.startswith("changelog")]
    if not files:
        raise SystemExit(
            f"error: no .rst or .rst.txt file below {args.text}; give the folder of the documentation's sources"
        )
    texts = {str(p.relative_to(args.text)): p.read_text(encoding="utf-8", errors="replace") for p in files}
    train = [text for name, text in texts.items() if not held_out(name)]
    kept = [text for name, text in texts.items() if held_out(name)]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(train, trainer)

    def encode(documents: list[str]) -> np.ndarray:
        ids: list[int] = []
        for document in tokenizer.encode_batch(documents):
            ids.append(0)  # END both separates documents and starts one
            ids.extend(document.ids)
        return np.asarray(ids, dtype=np.uint16)

    args.out.mkdir(parents=True, exist_ok=True)
    shipped = "\n".join(kept).encode()[: args.heldout_bytes].decode(errors="ignore")
    tokenizer.save(str(args.out / "tokenizer.json"))
    np.save(args.out / "train.npy", encode(train))
    np.save(args.out / "heldout.npy", encode([shipped]))
    (args.out / "heldout.txt").write_text(shipped, encoding="utf-8")
    facts = {
        "files": len(files),
        "train_files": len(train),
        "train_bytes": sum(len(t.encode()) for t in train),
        "train_tokens": int(np.load(args.out / "train.npy").size),
        "heldout_bytes": len(shipped.encode()),
        "heldout_tokens": int(np.load(args.out / "heldout.npy").size),
        "sha256": hashlib.sha256("\0".join(texts.values()).encode()).hexdigest(),
    }
    (args.out / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
