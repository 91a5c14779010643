"""A product that must be exact: matrices of -1 and +1, and sums that say where it is not. Uses torch.

Every element of C = A @ B is an even integer (K is even) far below what its format holds exactly,
so C computed by any library in any order must be right to the bit, and

    row sums:     C . 1  ==  A . (B . 1)          column sums:     1 . C  ==  (1 . A) . B

hold in 64-bit integers without a tolerance. One wrong element breaks one row sum and one column
sum: their crossing is its place. Shape legend: a_MK, b_KN, c_MN.

Source: algorithm-based fault tolerance (Huang and Abraham, IEEE Trans. Computers 1984) with inputs
that need no threshold; section 5.3 of this project's measurement science for the lengths K.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flopwatch_kernels.gemm_operands import COLUMN_MAJOR, torch_format

if TYPE_CHECKING:
    import torch

TILE: Final = 128
"""Edge of the tiles that wrong elements are named by; libraries compute C in multiples of it."""

INNER: Final[dict[str, int]] = {"fp16": 8192, "bf16": 1024, "int8": 8192, "fp8": 1024}
"""K per dtype. bf16 holds even integers up to 512 exactly: 16 standard deviations at K = 1024, and
about one element in 67 million beyond it at 8192. fp8 is written as bf16."""

_LISTED_MAX: Final = 8
_NO_INTEGER: Final = 1 << 40
_ROWS_AT_ONCE: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """One wrong element. Attributes: row, column: of C; found, expected: its value."""

    row: int
    column: int
    found: float
    expected: int

    @property
    def text(self) -> str:
        """The element for a person, with its tile."""
        tile = f"tile ({self.row // TILE}, {self.column // TILE})"
        return (
            f"element ({self.row}, {self.column}) in {tile} is {self.found:g} and not"
            f" {self.expected}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a product is right. Attributes: rows, columns: how many sums are wrong; wrong: the
    first elements found where they cross."""

    rows: int
    columns: int
    wrong: tuple[Wrong, ...]

    @property
    def mismatches(self) -> int:
        """Wrong elements, at least: each breaks a row's sum and a column's."""
        return max(self.rows, self.columns)


def signs(
    shape: tuple[int, int, int], dtype: str, device: str, seed: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """A and B of -1 and +1, drawn on the device, B column-major where the dtype wants it."""
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    m, n, k = shape

    def drawn(size: tuple[int, int]) -> torch.Tensor:
        bits = torch.randint(0, 2, size, dtype=torch.int8, device=device, generator=generator)
        return (2 * bits - 1).to(torch_format(dtype))

    a_mk = drawn((m, k))
    return a_mk, drawn((n, k)).t() if dtype in COLUMN_MAJOR else drawn((k, n))


def verdict(a_mk: "torch.Tensor", b_kn: "torch.Tensor", c_mn: "torch.Tensor") -> Verdict:
    """Check every row sum and column sum of C in 64-bit integers, on the device that holds it."""
    import torch

    ones_k = _row_sums(b_kn)
    first_k = _column_sums(a_mk)
    rows = torch.cat([(part * ones_k).sum(1) for part in _integers(a_mk)]) != _row_sums(c_mn)
    b_nk = b_kn.t()
    columns = torch.cat([(part * first_k).sum(1) for part in _integers(b_nk)]) != _column_sums(c_mn)
    bad_rows = rows.nonzero().flatten().tolist()
    bad_columns = columns.nonzero().flatten().tolist()
    return Verdict(
        rows=len(bad_rows),
        columns=len(bad_columns),
        wrong=tuple(_crossings(a_mk, b_kn, c_mn, bad_rows, bad_columns)),
    )


def _crossings(
    a_mk: "torch.Tensor",
    b_kn: "torch.Tensor",
    c_mn: "torch.Tensor",
    rows: list[int],
    columns: list[int],
) -> Iterator[Wrong]:
    """The first elements where a wrong row meets a wrong column and that are wrong themselves."""
    listed = 0
    for row in rows[:_LISTED_MAX]:
        for column in columns[:_LISTED_MAX]:
            # On the host: the device under suspicion does not say what is right.
            expected = int((_host(a_mk[row]) * _host(b_kn[:, column])).sum())
            found = float(c_mn[row, column])
            if found != expected and listed < _LISTED_MAX:
                listed += 1
                yield Wrong(row=row, column=column, found=found, expected=expected)


def _host(values: "torch.Tensor") -> "torch.Tensor":
    import torch

    return values.cpu().float().to(torch.int64)


def _integers(matrix: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """The matrix as 64-bit integers, a few rows at a time; what is none breaks every sum it is in."""
    import torch

    for first in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        part = matrix[first : first + _ROWS_AT_ONCE]
        if not part.is_floating_point():
            yield part.to(torch.int64)
            continue
        values = part.float()  # fp8 has no cast to integers of its own
        whole = values.nan_to_num(0.0, 0.0, 0.0).to(torch.int64)
        # A flipped bit of low weight leaves a fraction, which the cast would cut off.
        yield whole + (whole.float() != values) * _NO_INTEGER


def _row_sums(matrix: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([part.sum(1) for part in _integers(matrix)])


def _column_sums(matrix: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.stack([part.sum(0) for part in _integers(matrix)]).sum(0)
