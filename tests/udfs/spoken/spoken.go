// Functions that succeed or fail with words, exported from Go.
package main

import "strconv"

//go:wasmexport collatz
func collatz(n int64) int64 {
	steps := int64(0)
	for n > 1 {
		if n%2 == 0 {
			n /= 2
		} else {
			n = 3*n + 1
		}
		steps++
	}
	return steps
}

//go:wasmexport fail
func fail(n int64) int64 {
	if n != 0 {
		panic("the value is " + strconv.FormatInt(n, 10))
	}
	return n
}

func main() {}
