"""Run one target under atheris: ``python -m tests.fuzz.run TARGET [options of libFuzzer] [corpus folders]``.

``./dev bench fuzz`` starts it, in an environment that has atheris.
"""

import sys

import atheris

with atheris.instrument_imports(include=["protocol", "roverd", "trainerd"]):
    from tests.fuzz.targets import TARGETS


def main():
    name, *options = sys.argv[1:]
    silence()
    atheris.Setup([sys.argv[0], *options], TARGETS[name].run)
    atheris.Fuzz()


def silence():
    """Let the decoders' own warnings through at errors only: they would be most of the output."""
    from protocol.node.log import configure

    configure("fuzz", level="error")


if __name__ == "__main__":
    main()
