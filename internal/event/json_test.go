package event

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"testing"
	"time"
)

// A line is what encoding/json makes of the same map, byte for byte.
func TestLineIsAsEncodingJSONWritesIt(t *testing.T) {
	for _, f := range []Fields{
		nil,
		{"a": "plain", "b": "quo\"te", "c": "<&>", "d": "ünï", "e": "\x00\x7f\xff", "f": "a\\b", "g": ""},
		{"i": 1, "j": int64(-5), "k": uint64(math.MaxUint64), "l": true, "m": int32(7), "n": nil},
		{"x": 0.0, "y": math.Copysign(0, -1), "z": 1.5, "u": 1e-7, "v": 123456789.123, "w": 1e21, "s": -2e-6, "r": 1e20, "float32": float32(0.1)},
		{"list": []string{"a", "b\n"}, "none": []string{}, "nil": []string(nil), "map": map[string]int{"b": 1, "a": 2}, "dur": time.Second},
		{"event": "another", "time": "never", "source": "somebody", "pc": "own", "": "empty", "k<": 1},
	} {
		for _, with := range []Fields{nil, {"pc": "pc-1", "a": "with"}, {"source": "with"}} {
			for _, source := range []string{"attestd", ""} {
				var b bytes.Buffer
				NewJSON(&b, source, fixed).With(with).Emit("name", f)
				want := Fields{}
				if source != "" {
					want["source"] = source
				}
				maps.Copy(want, with)
				maps.Copy(want, f)
				want["event"], want["time"] = "name", fixed().Format(time.RFC3339Nano)
				line, err := json.Marshal(want)
				if err != nil {
					t.Fatal(err)
				}
				if got := b.String(); got != string(line)+"\n" {
					t.Errorf("%v with %v:\n%swant\n%s", f, with, got, line)
				}
			}
		}
	}
	var b bytes.Buffer
	NewJSON(&b, "x", fixed).Emit("e", Fields{"f": math.NaN()})
	if !bytes.Contains(b.Bytes(), []byte("event.unprintable")) {
		t.Error(b.String())
	}
}

func BenchmarkEmit(b *testing.B) {
	w := NewJSON(new(nothing), "attestd", time.Now).With(Fields{"pc": "pc-1"})
	b.ReportAllocs()
	for b.Loop() {
		w.Emit("challenge", Fields{"session": "abcdefghijklmnopqrstuvwxyz", "sequence": uint64(12), "probes": []string{"tpm", "hw"}, "enrol": false, "late_seconds": 0.000123})
	}
}

type nothing struct{}

func (*nothing) Write(b []byte) (int, error) { return len(b), nil }
