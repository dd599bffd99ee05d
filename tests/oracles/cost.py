"""Multiply-accumulates counted one by one, by loops that do what the operator does."""

from itertools import product


def convolution_macs(made, weight):
    """Every output element (batch, channel, *space) reads its whole filter (channels of a group, *kernel)."""
    count = 0
    for _ in product(*map(range, made)):
        for _ in product(*map(range, weight[1:])):
            count += 1
    return count


def transposed_convolution_macs(given, weight):
    """Every input element is spread through every element of its filters (output channels of a group, *kernel)."""
    count = 0
    for _ in product(*map(range, given)):
        for _ in product(*map(range, weight[1:])):
            count += 1
    return count


def product_macs(left, right):
    """Batched rows times columns."""
    count = 0
    for _ in product(*map(range, left[:-2])):
        for _row in range(left[-2]):
            for _column in range(right[-1]):
                for _ in range(left[-1]):
                    count += 1
    return count


def recurrent_macs(steps, batch, directions, gates, hidden, inputs):
    """Every step, for every gate and unit: all inputs and all hidden units."""
    count = 0
    for _ in product(range(steps), range(batch), range(directions), range(gates), range(hidden)):
        for _ in range(inputs + hidden):
            count += 1
    return count


def peak_bytes(steps, sizes, outputs):
    """The most that lives at once; ``steps`` are (reads, writes), ``sizes`` bytes by tensor, written or given."""
    written = {name: index for index, (_, writes) in enumerate(steps) for name in writes}
    last = {name: max([i for i, (reads, _) in enumerate(steps) if name in reads], default=-1) for name in sizes}
    last |= dict.fromkeys(outputs, len(steps))
    totals = []
    for index in range(len(steps)):
        alive = [
            name
            for name in sizes
            if written.get(name, -1) <= index and (last[name] >= index or written.get(name) == index)
        ]
        totals.append(sum(sizes[name] for name in alive))
    return max(totals)
