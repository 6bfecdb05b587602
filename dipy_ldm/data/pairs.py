"""Volumes and their masks: one for each, on its grid."""

from collections.abc import Sequence
from pathlib import Path

from dipy_ldm.data.grid import same_grid
from dipy_ldm.data.headers import VolumeInfo, check_headers, refuse
from dipy_ldm.validation import InputError


def pair_masks(
    files: Sequence[Path],
    infos: Sequence[VolumeInfo],
    mask_files: Sequence[Path],
    skip_bad: bool,
) -> tuple[list[VolumeInfo], list[Path]]:
    """Give each good volume its mask; without a good mask it is no longer good.

    Parameters
    ----------
    files : sequence of Path
        All volumes.
    infos : sequence of VolumeInfo
        Of the good ones.
    mask_files : sequence of Path
        As many as volumes, in their order.
    skip_bad : bool
        As of :func:`dipy_ldm.data.load_volumes`.

    Returns
    -------
    infos, masks : list
        What is left, and the mask of each.

    Raises
    ------
    InputError
        If there are more or fewer, or one is bad and not to be skipped.
    """
    if len(mask_files) != len(files):
        raise InputError(
            f"there are {len(mask_files)} masks for {len(files)} volumes; give one for "
            "each, in the same order."
        )
    mask_of = dict(zip(files, mask_files, strict=True))
    mask_infos, _ = check_headers(list(dict.fromkeys(mask_files)), skip_bad=skip_bad)
    info_of = {info.file: info for info in mask_infos}
    pairs, complaints = [], {}
    for info in infos:
        mask = info_of.get(mask_of[info.file])
        if mask is None:
            continue
        if same_grid(info.shape, info.affine, mask.shape, mask.affine):
            pairs.append((info, mask.file))
        else:
            complaints[info.file] = (
                f"the mask {mask.file} has another grid (shape or affine) than its "
                f"volume {info.file}; resample it to that of the volume."
            )
    refuse(complaints, len(pairs), skip_bad)
    if not pairs:
        raise InputError("no good volume has a good mask; mend those named above.")
    return [info for info, _ in pairs], [mask for _, mask in pairs]
