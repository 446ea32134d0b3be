// Functions that succeed or fail with words, exported from AssemblyScript.
export function collatz(n: i64): i64 {
  let steps: i64 = 0;
  while (n > 1) {
    n = n % 2 == 0 ? n / 2 : 3 * n + 1;
    steps++;
  }
  return steps;
}

export function fail(n: i64): i64 {
  if (n != 0) throw new Error("the value is " + n.toString());
  return n;
}
