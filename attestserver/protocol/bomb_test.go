package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
)

// Bytes that decoding would multiply are refused before they are decoded: a
// frame of 4 MiB of empty results would become some 370 MiB, and as many empty
// objects of JSON some 900 MiB.
func TestInvariant11_SmallBytesDoNotBecomeMuchMemory(t *testing.T) {
	result := (&Evidence{}).ProtoReflect().Descriptor().Fields().ByName("results").Number()
	body := (&Message{}).ProtoReflect().Descriptor().Fields().ByName("evidence").Number()
	inner := bytes.Repeat([]byte{byte(result)<<3 | 2, 0}, (MaxFrame-16)/2)
	frame := append(binary.AppendUvarint([]byte{byte(body)<<3 | 2}, uint64(len(inner))), inner...)
	object := func(key string) []byte {
		return append(append([]byte(`{"`+key+`":[{}`), bytes.Repeat([]byte(",{}"), (MaxData-64)/3)...), "]}"...)
	}
	files, processes := object("files"), object("processes")
	for name, decode := range map[string]func() error{
		"empty results": func() error {
			_, err := DecodeMessage(frame)
			if err != nil && !errors.Is(err, ErrFrame) {
				t.Errorf("not a typed error: %v", err)
			}
			return err
		},
		"empty files":     func() error { return DecodeOp(files, MaxData, new(ProcsData)) },
		"empty processes": func() error { return DecodeOp(processes, MaxData, new(ProcsData)) },
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := decode()
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Error("accepted")
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d MiB were allocated", n>>20)
			}
		})
	}
}
