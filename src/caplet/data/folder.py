"""Own images: a folder with one sub-folder per class, or an archive of one."""

from __future__ import annotations

from caplet.data.archive import is_archive, load_archive
from caplet.data.source import Request, Source
from caplet.data.tree import LAYOUT, decode_tree, scan_folder, to_source
from caplet.errors import DataError


def load_folder(request: Request) -> Source:
    """Read the image folder (or ``.tar``, ``.tar.xz``, ... archive of one) ``request.root``.

    Raises:
        DataError: no root was given, or as :func:`scan_folder` and :func:`decode_tree`.
    """
    if request.root is None:
        raise DataError(f"dataset 'folder' needs the path of your images: give root= (--root) with {LAYOUT}")
    if is_archive(request.root):
        return to_source(load_archive(request.root, request), "folder", source="image archive", root=request.root)
    tree = scan_folder(request.root)
    note = f"not read: {', '.join(tree.ignored)}" if tree.ignored else ""
    return to_source(decode_tree(tree, request), "folder", source="image folder", root=request.root, note=note)
