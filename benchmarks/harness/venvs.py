"""Each peer's own virtual environment, made when it is first asked for, below benchmarks/.venvs."""

from __future__ import annotations

import subprocess
import venv

from harness.process import HERE, Unavailable, own_python

FOLDER = HERE / ".venvs"
TORCH = ("torch==2.13.0", "pyarrow", "transformers")  # the CPU build comes by -c constraints.txt
PINNED = {  # the versions of constraints.txt, where packages are shared
    "transformers": TORCH,
    "ray": (*TORCH, "ray", "pandas"),
    "openvino": (*TORCH, "openvino"),
    "onnx": (*TORCH, "onnxruntime", "onnx", "onnxscript"),
    "sentence": (*TORCH, "sentence-transformers"),
}
FREE = {  # those that want other versions than ours
    "optimum": ("torch==2.13.0", "pyarrow", "sentence-transformers", "optimum-intel[openvino]", "openvino-genai",
                "openvino-tokenizers"),
    "ctranslate2": ("torch==2.13.0", "ctranslate2", "transformers", "sentencepiece"),
}  # fmt: skip
WITHOUT = {"optimum": ("torchvision",)}  # comes along, built for another torch, and breaks the import of transformers


def python_of(environment: str | None) -> str:
    """The interpreter of an environment, made if need be; Unavailable with pip's last words where it cannot be."""
    if environment is None:
        return own_python()
    folder = FOLDER / environment
    wanted = PINNED.get(environment) or FREE[environment]
    stamp, text = folder / "requirements", "\n".join(wanted)
    python = folder / "bin" / "python"
    if not (stamp.exists() and stamp.read_text() == text):
        print(f"making the environment {environment}: {' '.join(wanted)}", flush=True)
        venv.create(folder, with_pip=True)
        pinned = ["-c", str(HERE.parent / "constraints.txt")] if environment in PINNED else []
        pip = [str(python), "-m", "pip"]
        command = [*pip, "install", "--quiet", "--disable-pip-version-check", *pinned, *wanted]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["no message"]
            raise Unavailable(f"its environment could not be made: {words[-1][:200]}")
        if unwanted := WITHOUT.get(environment):
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *unwanted], check=True)
        stamp.write_text(text)
    return str(python)


def versions(python: str) -> dict[str, str]:
    """What is installed there."""
    command = [python, "-c", "import importlib.metadata as m, json; "
               "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"]  # fmt: skip
    import json

    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return {name: found[name] for name in sorted(found) if name in SHOWN}


SHOWN = {"torch", "transformers", "tokenizers", "ray", "openvino", "openvino-genai", "onnxruntime", "ctranslate2",
         "sentence-transformers", "optimum-intel", "numpy", "pyarrow"}  # fmt: skip
