"""The functions of `funcs.wit` in Python: componentize-py makes a component of them."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import funcs


class Funcs(exports.Funcs):
    def add(self, a, b):
        return (a + b + 2**63) % 2**64 - 2**63

    def upper(self, text):
        return text.upper()

    def total(self, numbers):
        return sum(numbers)

    def move_by(self, from_, by):
        return funcs.Place(from_.x + by, from_.y + by, from_.label)

    def area(self, of):
        match of:
            case funcs.Shape_Circle(radius):
                return 3 * radius * radius
            case funcs.Shape_Rectangle((width, height)):
                return width * height
        return 0.0

    def divide(self, a, b):
        if b == 0:
            raise Err(f"{a} can't be divided by {b}")
        return int(a / b)

    def successor(self, number):
        return None if number is None or number == 2**32 - 1 else number + 1

    def next_color(self, after):
        return funcs.Color((after.value + 1) % 3)

    def other_rights(self, than):
        return ~than & (funcs.Rights.READ | funcs.Rights.WRITE | funcs.Rights.RUN)

    def backwards(self, bytes):
        return bytes[::-1]

    def spin(self, to):
        at = 0
        while at < to:
            at += 1
        return at
