"""What Windows' own library is asked for, where Python's functions do not do as on other systems.

Not tried on Windows yet (docs/en/systems.md); checked by ``mypy --platform win32``.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import ctypes
    import errno
    import msvcrt
    import os
    from ctypes import wintypes
    from pathlib import Path

    _GENERIC_READ, _GENERIC_WRITE, _APPEND_DATA = 0x8000_0000, 0x4000_0000, 0x0004
    _SHARED = 0x1 | 0x2 | 0x4  # for reading, writing and deleting: what is open can be renamed and removed
    _OPEN_EXISTING, _OPEN_ALWAYS, _CREATE_NEW = 3, 4, 1
    _NORMAL = 0x80
    _NO_HANDLE = ctypes.c_void_p(-1).value
    _FAIL_IMMEDIATELY, _EXCLUSIVE = 1, 2
    _LOCK_VIOLATION, _IO_PENDING = 33, 997
    _FAR = 1 << 62  # where locks lie: they keep everybody from reading and writing what they cover

    class _Overlapped(ctypes.Structure):
        _fields_ = (
            ("Internal", ctypes.c_void_p),
            ("InternalHigh", ctypes.c_void_p),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        )

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.CreateFileW.restype = ctypes.c_void_p
    _kernel.CreateFileW.argtypes = (
        wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD,
        wintypes.HANDLE,
    )  # fmt: skip
    _kernel.LockFileEx.argtypes = (
        wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD,
        ctypes.POINTER(_Overlapped),
    )  # fmt: skip

    def open_shared(path: Path, flags: int, mode: int = 0o666) -> int:
        """os.open, but what is open can be renamed and removed, as on other systems. Raises OSError."""
        access = _GENERIC_READ | (_GENERIC_WRITE if flags & os.O_RDWR else 0)
        how = _OPEN_EXISTING
        if flags & os.O_CREAT:
            how = _CREATE_NEW if flags & os.O_EXCL else _OPEN_ALWAYS
        found = _kernel.CreateFileW(str(path), access, _SHARED, None, how, _NORMAL, None)
        if found in (None, _NO_HANDLE):
            error = ctypes.WinError(ctypes.get_last_error())
            error.filename = str(path)
            raise error
        return msvcrt.open_osfhandle(found, flags & ~(os.O_CREAT | os.O_EXCL))

    def lock(handle: int, *, wait: bool) -> None:
        """Lock an open file. Raises BlockingIOError where another has it and ``wait`` is false."""
        place = _Overlapped(None, None, _FAR & 0xFFFF_FFFF, _FAR >> 32, None)
        how = _EXCLUSIVE | (0 if wait else _FAIL_IMMEDIATELY)
        if _kernel.LockFileEx(msvcrt.get_osfhandle(handle), how, 0, 1, 0, ctypes.byref(place)):
            return
        number = ctypes.get_last_error()
        if number in (_LOCK_VIOLATION, _IO_PENDING):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        raise ctypes.WinError(number)
