package main

import (
	"encoding/hex"
	"slices"
	"testing"
)

func TestPacketsAreReadAsTheyWereWritten(t *testing.T) {
	for _, p := range []packet{
		{source: 40000, destination: 9003, kind: typeInit, tag: 0x01020304},
		{source: 9003, destination: 40000, verification: 0x01020304, kind: typeInitAck, tag: 0xfffffffe},
	} {
		b := p.bytes()
		if got, ok := parse(b); !ok || got != p {
			t.Errorf("%s is read as %+v (%v), was %+v", hex.EncodeToString(b), got, ok, p)
		}
		for i := range b {
			broken := slices.Clone(b)
			broken[i] ^= 0x10
			if _, ok := parse(broken); ok {
				t.Errorf("byte %d is wrong, and nobody notices", i)
			}
			if _, ok := parse(b[:i]); ok {
				t.Errorf("%d bytes of %d are taken for the whole", i, len(b))
			}
		}
	}
}

func TestPacketsHaveTheLengthsOfTheStandard(t *testing.T) {
	init, ack := packet{kind: typeInit}.bytes(), packet{kind: typeInitAck}.bytes()
	if len(init) != 32 || init[14] != 0 || init[15] != 20 {
		t.Errorf("INIT %x: want 12 bytes and a chunk of 20", init)
	}
	if len(ack) != 40 || ack[15] != 28 || ack[33] != 7 || ack[35] != 8 {
		t.Errorf("INIT ACK %x: want 12 bytes and a chunk of 28 that ends with a cookie of 8", ack)
	}
}
