// The functions of `funcs.wit` in JavaScript: componentize-js makes a component of them.
const colors = ["red", "green", "blue"];

export const funcs = {
    add: (a, b) => BigInt.asIntN(64, a + b),
    upper: text => text.toUpperCase(),
    total: numbers => numbers.reduce((sum, one) => sum + one, 0n),
    moveBy: (from, by) => ({ x: from.x + by, y: from.y + by, label: from.label }),
    area: of =>
        of.tag === "circle" ? 3 * of.val ** 2 : of.tag === "rectangle" ? of.val[0] * of.val[1] : 0,
    divide: (a, b) => {
        if (b === 0n) throw `${a} can't be divided by ${b}`;
        return a / b;
    },
    successor: number => (number === undefined || number === 2 ** 32 - 1 ? undefined : number + 1),
    nextColor: after => colors[(colors.indexOf(after) + 1) % 3],
    otherRights: than => ({ read: !than.read, write: !than.write, run: !than.run }),
    backwards: bytes => bytes.slice().reverse(),
    spin: to => {
        let at = 0n;
        while (at < to) at++;
        return at;
    },
};
