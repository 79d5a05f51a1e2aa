"""What trainerd must not wait for before it listens."""

import subprocess
import sys

SLOW = ("torch", "onnx", "onnxruntime", "onnxscript")


def test_trainerd_listens_before_it_imports_what_takes_seconds():
    program = f"import sys, trainerd.main; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
