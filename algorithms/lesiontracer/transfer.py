"""Start a training from pretrained weights: the shared body without the segmentation heads, and one stem.

Reads what nnU-Net, MIC-DKFZ's MultiTalent and `autopet pretrain` write. A network that was trained on several data
sets has a head for each of them (`decoder.seg_layers.<id>.<stage>.*`) and, when their channels differ, a stem for each
(`encoder.stem.<id>.*` in place of `encoder.stem.*`); an nnU-Net decoder holds a reference to its encoder, so a state
dict has every encoder tensor again below `decoder.encoder.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autopet.checkpoint import SUMS, verify_sums
from autopet.errors import AutopetError
from autopet.pretrained import SHOWN, Report, Weights, misfit, read_weights, shape_text, unwrapped

SUFFIXES = (".safetensors", ".pth", ".pt", ".model")
HEADS = {"seg_layers", "organ_seg_layers", "seg_outputs"}
STEM = re.compile(r"encoder\.stem\.(?:(?!convs\.)(?P<id>[^.]+)\.)?(?P<rest>.+)")
HEAD_REASON = "a segmentation head"


@dataclass(frozen=True)
class TransferReport(Report):
    """What became of the tensors of a checkpoint; a tensor that goes by several names is counted once.

    `stem` is the id of the stem that was taken from several, `other_stems` are those that would have fitted, too.
    """

    stem: str = ""
    other_stems: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """Which stem was taken."""
        if not self.stem:
            return []
        rest = f" (the first that fits; so do {', '.join(self.other_stems)})" if self.other_stems else ""
        return [f"stem of {self.stem}{rest}"]


def load_pretrained(network: nn.Module, path: Path, *, stem: str = "") -> TransferReport:
    """Copy pretrained weights into a network, in place, as far as names and shapes agree.

    Parameters
    ----------
    network : nn.Module
        An nnU-Net network, e.g. LesionTracer's; wrapped for several GPUs, or compiled, or plain.
    path : Path
        A checkpoint of nnU-Net or MultiTalent (`.pth`), a plain state dict, a safetensors file, or a folder of
        `autopet pretrain`. Nothing in it is executed.
    stem : str
        Which stem to take from a checkpoint that has several: the data set's id. Without it, the one that has the
        network's number of channels; if there are several, the first by name, and the report says so. In the weights
        that LesionTracer's authors released, `221` is the stem of autoPET (CT and PET).

    Returns
    -------
    TransferReport

    Raises
    ------
    AutopetError
        No such file, not a checkpoint, a stem that is not there or does not fit, or nothing fits the encoder.

    Notes
    -----
    Rokuss et al. (From FDG to PSMA, section 2.3): the heads are left out, the body is fine-tuned.
    """
    target = _unwrap(network)
    own, names = _tensors(target)
    weights, skipped = _unify(_read(path))
    body, stems = _divide(weights)
    fitting = [id_ for id_ in sorted(stems, key=_natural) if _fits(stems[id_], own, names)]
    chosen = _choose_stem(stems, fitting, wanted=stem, path=path)
    if chosen is not None:
        body |= {f"encoder.stem.{rest}": tensor for rest, tensor in stems[chosen].items()}
    matched, unfit = _match(body, own, names)
    _check_body(matched, body, own, path)
    skipped |= unfit
    for id_ in stems:
        if id_ != chosen:
            skipped |= _skip_stem(id_, stems[id_], own, fits=id_ in fitting)
    with torch.no_grad():
        for name, tensor in matched.items():
            own[name].copy_(tensor)
    others = () if stem else tuple(id_ for id_ in fitting if id_ != chosen)
    return TransferReport.of(own, matched, skipped, stem=chosen or "", other_stems=others)


def _read(path: Path) -> Weights:
    """The weights of a file, or of the only weights file in a folder; checksums are compared when there are any."""
    path = Path(path)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(found) != 1:
            listed = ", ".join(file.name for file in found[:SHOWN]) or "none"
            raise AutopetError(f"{path}: expected one file of weights ({', '.join(SUFFIXES)}), found {listed}; name it")
        if (path / SUMS).is_file():
            verify_sums(path)
        path = found[0]
    return read_weights(path, what="checkpoint", give="a checkpoint of nnU-Net, or a state dict")


def _unwrap(network: nn.Module) -> nn.Module:
    for attribute in ("module", "_orig_mod", "module"):
        network = getattr(network, attribute, network)
    return network


def _plain(name: str) -> str:
    """A tensor's name without the wrappers' prefixes, and without the detour through the decoder."""
    name = unwrapped(name)
    return name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name


def _unify(weights: Weights) -> tuple[Weights, dict[str, str]]:
    """Every tensor under its plain name, and what was left out because two names hold different values."""
    plain: Weights = {}
    unlike: dict[str, str] = {}
    for name, tensor in weights.items():
        first = plain.setdefault(_plain(name), tensor)
        if first is not tensor and not torch.equal(first, tensor):
            unlike[name] = f"unlike {_plain(name)}, the same tensor by its other name, which was taken"
    return plain, unlike


def _tensors(network: nn.Module) -> tuple[Weights, dict[str, str]]:
    """The network's tensors by their first name, and that first name for every name (one tensor may have several)."""
    own: Weights = {}
    names: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        first = seen.setdefault(id(tensor), name)
        own.setdefault(first, tensor)
        names[name] = first
    return own, names


def _divide(weights: Weights) -> tuple[Weights, dict[str, Weights]]:
    """A checkpoint's tensors outside the stems, and its stems by id (the id is empty where one stem serves all)."""
    body: Weights = {}
    stems: dict[str, Weights] = {}
    for name, tensor in weights.items():
        match = STEM.fullmatch(name)
        if match:
            stems.setdefault(match["id"] or "", {})[match["rest"]] = tensor
        else:
            body[name] = tensor
    return body, stems


def _fits(stem: Weights, own: Weights, names: Mapping[str, str]) -> bool:
    firsts = {rest: names.get(f"encoder.stem.{rest}") for rest in stem}
    return all(first is not None and own[first].shape == stem[rest].shape for rest, first in firsts.items())


def _choose_stem(stems: Mapping[str, Weights], fitting: list[str], *, wanted: str, path: Path) -> str | None:
    if not wanted:
        return fitting[0] if fitting else None
    if wanted in fitting:
        return wanted
    known = ", ".join(sorted(filter(None, stems), key=_natural)) or "none: one stem serves all data sets"
    if wanted not in stems:
        raise AutopetError(f"{path}: no stem {wanted!r}; its stems are {known}")
    raise AutopetError(
        f"{path}: stem {wanted!r} {_channels(stems[wanted])}, which is not the network's; "
        f"those that fit: {', '.join(fitting) or 'none'}"
    )


def _natural(text: str) -> tuple:
    """Order in which 5 comes before 221."""
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _channels(stem: Weights) -> str:
    counts = {tensor.shape[1] for tensor in stem.values() if tensor.ndim > 1}
    return f"takes {' or '.join(map(str, sorted(counts)))} channel{'' if counts == {1} else 's'}"


def _skip_stem(id_: str, stem: Weights, own: Weights, *, fits: bool) -> dict[str, str]:
    """Why a whole stem stays out; half of one (its norms, say, without its convolution) would be no use."""
    expected = {name.partition("encoder.stem.")[2]: tensor for name, tensor in own.items() if "encoder.stem." in name}
    if fits:
        reason = "of another data set's stem"
    elif _channels(stem) != _channels(expected):
        reason = f"of a stem that {_channels(stem)}, the network's {_channels(expected)}"
    else:
        reason = "of a stem of another width"
    prefix = f"encoder.stem.{id_}." if id_ else "encoder.stem."
    return {prefix + rest: reason for rest in stem if "all_modules" not in rest}  # that is the same tensor again


def _match(weights: Weights, own: Weights, names: Mapping[str, str]) -> tuple[Weights, dict[str, str]]:
    """The tensors to take, by the network's first names, and the reason for each of the others."""
    matched: Weights = {}
    skipped: dict[str, str] = {}
    for name, tensor in weights.items():
        first = names.get(name, name)
        if HEADS & set(name.split(".")):
            skipped[name] = HEAD_REASON
        elif reason := misfit(first, tensor, own):
            skipped[first] = reason
        elif first in matched and not torch.equal(matched[first], tensor):
            skipped[name] = f"unlike {first}, the same tensor by its other name, which was taken"
        else:
            matched[first] = tensor
    return matched, skipped


def _check_body(matched: Weights, body: Weights, own: Weights, path: Path) -> None:
    """Norms and decoders of different architectures may agree by chance; an encoder that does not fit at all may not.

    Raises
    ------
    AutopetError
        No tensor of the encoder, its stem left aside, fits.
    """
    encoder = [name for name in own if name.startswith("encoder.") and not STEM.fullmatch(name)]
    if any(name in matched for name in encoder):
        return
    expected = f"{encoder[0]} of shape {shape_text(own[encoder[0]])}" if encoder else "an encoder"
    found = next(((name, tensor) for name, tensor in body.items() if "encoder" in name), None)
    other = f"{found[0]} of shape {shape_text(found[1])}" if found else ", ".join(list(body)[:SHOWN]) or "no tensors"
    raise AutopetError(
        f"{path}: weights of another architecture, nothing fits the encoder: expected e.g. {expected}, found {other}; "
        "give a checkpoint of the same network (paper: nnU-Net's ResEncL, 6 stages)"
    )
