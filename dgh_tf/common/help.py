"""What --help prints: what a command does, an example, and its flags in groups."""

from __future__ import annotations

import textwrap

from absl import flags

# what --model takes
MODELS = "demo, demo_detector, demo_signal, a .keras or .h5 file, a SavedModel folder"
MODEL_HELP = f"{MODELS}, a float .tflite file, or keras:NAME."
# the first group that lists a flag shows it; what none lists stands under "Settings"
GROUPS: dict[str, tuple[str, ...]] = {
    "Model": ("model", "signature", "weights", "allow_unsafe_deserialization", "import"),
    "Output": ("output", "output_dir", "images_dir", "tensorboard", "verbose"),
    "Images": (
        "calibration",
        "images",
        "num_images",
        "seed",
        "seeds",
        "steps",
        "batch_size",
        "input_range",
        "preprocess",
        "real",
        "evaluation",
        "real_hint",
    ),
    "Integer file": ("tflite", "scheme", "algorithm", "head", "verdict", "fail_below", "timeout"),
    "Targets": ("target", "require_full_mapping", "vela_config", "vela_system", "vela_memory"),
}
_REST = "Settings"
_LAST = "Flags may also stand in a file, one a line: --flagfile=FILE. --version tells the version."


def help_text(doc: str) -> str:
    """The text of --help.

    Args:
      doc: of the command's module: what it does, then an example.
    """
    own = {
        flag.name: flag
        for module, found in flags.FLAGS.flags_by_module_dict().items()
        if not module.startswith("absl.")
        for flag in found
    }
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    lines = [doc.strip()]
    for group in (*GROUPS, _REST):
        members = [flag for name, flag in own.items() if group_of.get(name, _REST) == group]
        if members:
            lines += ["", f"{group}:", *(line for flag in members for line in _of(flag))]
    return "\n".join([*lines, "", _LAST])


def _of(flag: flags.Flag) -> list[str]:
    boolean = isinstance(flag.value, bool) or isinstance(flag.default, bool)
    name = f"  --[no]{flag.name}" if boolean else f"  --{flag.name}"
    default = "" if flag.default in (None, "", []) else f" Default: {_shown(flag)}."
    text = (flag.help or "").split(";     repeat")[0].removesuffix(".") + "."
    return [
        name,
        *textwrap.wrap(text + default, 88, initial_indent="      ", subsequent_indent="      "),
    ]


def _shown(flag: flags.Flag) -> str:
    return str(flag.default_as_str).strip("'")
