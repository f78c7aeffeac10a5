package wire_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/heddle-net/heddle/internal/cni/wire"
)

func TestRequestArrivesAsItWasSent(t *testing.T) {
	sent := wire.Request{Command: "ADD", ContainerID: "c1", Netns: "/run/netns/x", NetnsError: "no", IfName: "eth0", Args: "a=b;c=d", Path: "/opt", Stdin: []byte("{}\x00\xff")}
	frame := sent.AppendFrame(nil)
	n, err := wire.PayloadSize(frame[:wire.HeaderSize], wire.MaxRequest)
	if err != nil || n != len(frame)-wire.HeaderSize {
		t.Fatalf("size %d of %d, error %v", n, len(frame), err)
	}
	got, err := wire.ParseRequest(frame[wire.HeaderSize:])
	if err != nil || !reflect.DeepEqual(got, sent) {
		t.Fatalf("got %+v, error %v", got, err)
	}
	for i := range len(frame) - wire.HeaderSize {
		if _, err := wire.ParseRequest(frame[wire.HeaderSize : wire.HeaderSize+i]); err == nil {
			t.Fatalf("the first %d bytes alone were taken", i)
		}
	}
}

func TestResponseArrivesAsItWasSent(t *testing.T) {
	frame := (&wire.Response{Exit: 1, Stdout: []byte("{}")}).AppendFrame([]byte("before"))[len("before"):]
	n, err := wire.PayloadSize(frame[:wire.HeaderSize], wire.MaxResponse)
	if err != nil || n != 3 {
		t.Fatalf("size %d, error %v", n, err)
	}
	got, err := wire.ParseResponse(frame[wire.HeaderSize:])
	if err != nil || got.Exit != 1 || string(got.Stdout) != "{}" {
		t.Fatalf("got %+v, error %v", got, err)
	}
}

func TestLargestRequestFits(t *testing.T) {
	field := string(make([]byte, wire.MaxField))
	r := wire.Request{Command: field, ContainerID: field, Netns: field, NetnsError: field, IfName: field, Args: field, Path: field, Stdin: make([]byte, wire.MaxStdin)}
	if name := r.Oversize(); name != "" {
		t.Fatalf("%s is too large", name)
	}
	if _, err := wire.PayloadSize(r.AppendFrame(nil)[:wire.HeaderSize], wire.MaxRequest); err != nil {
		t.Fatal(err)
	}
	r.Args += "x"
	if name := r.Oversize(); name != "CNI_ARGS" {
		t.Fatalf("oversize: %q", name)
	}
}

func FuzzParseRequest(f *testing.F) {
	r := wire.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Stdin: []byte("{}")}
	f.Add(r.AppendFrame(nil)[wire.HeaderSize:])
	f.Add([]byte{0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := wire.ParseRequest(payload)
		if err != nil {
			return
		}
		if again := got.AppendFrame(nil)[wire.HeaderSize:]; !bytes.Equal(again, payload) {
			t.Fatalf("%x was read as %x", payload, again)
		}
	})
}
