// slug.go
package main

import (
	"strconv"
	"strings"
	"unsafe"
)

var kept = map[*byte][]byte{}

//go:wasmexport alloc
func alloc(size uint32) unsafe.Pointer {
	piece := make([]byte, size+1)
	kept[&piece[0]] = piece
	return unsafe.Pointer(&piece[0])
}

//go:wasmexport dealloc
func dealloc(at unsafe.Pointer, size uint32) {
	delete(kept, (*byte)(at))
}

//go:wasmexport slug
func slug(at unsafe.Pointer, size, most uint32) uint64 {
	if most == 0 {
		panic("a slug has at least one word, not " + strconv.Itoa(int(most)))
	}
	words := strings.Fields(strings.ToLower(unsafe.String((*byte)(at), size)))
	if len(words) > int(most) {
		words = words[:most]
	}
	slug := strings.Join(words, "-")
	out := alloc(uint32(len(slug)))
	copy(unsafe.Slice((*byte)(out), len(slug)), slug)
	return uint64(uintptr(out))<<32 | uint64(len(slug))
}

func main() {}
