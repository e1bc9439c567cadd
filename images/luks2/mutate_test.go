package luks2

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"testing"
)

// hostile values that are put in the place of any other.
var hostile = []any{
	nil, true, -1, 0, 1, 2, 255, 256, 512, 4095, 1 << 31, 1 << 53, 1e300, 0.5, json.Number("99999999999999999999999"),
	"", "0", "1", "-1", "00", "4096", "32768", "290816", "548864", "1048576", "4294967296", "9223372036854775807", "18446744073709551616",
	"dynamic", "luks2", "pbkdf2", "argon2i", "argon2id", "sha1", "sha512", "aes-cbc-essiv:sha256", "aes-xts-plain64", "aes-xts-plain", "null",
	"AAAAAAAAAAA=", "AA==", "crypt", "linear", "reencrypt", "\x00", "\u0000", "é",
	[]any{}, []any{"0"}, []any{"0", "0"}, []any{"1"}, []any{nil}, []any{0}, map[string]any{}, map[string]any{"0": map[string]any{}},
}

// mutate changes one value somewhere in v, or a name.
func mutate(random *rand.Rand, v any) any {
	switch x := v.(type) {
	case map[string]any:
		if len(x) == 0 || random.IntN(12) == 0 {
			break
		}
		names := make([]string, 0, len(x))
		for n := range x {
			names = append(names, n)
		}
		sort.Strings(names)
		n := names[random.IntN(len(names))]
		switch random.IntN(16) {
		case 0:
			delete(x, n)
		case 1:
			x["31"] = clone(x[n])
		case 2:
			x[names[random.IntN(len(names))]] = clone(x[n])
		default:
			x[n] = mutate(random, x[n])
		}
		return x
	case []any:
		if len(x) == 0 || random.IntN(4) == 0 {
			break
		}
		i := random.IntN(len(x))
		x[i] = mutate(random, x[i])
		return x
	}
	return clone(hostile[random.IntN(len(hostile))])
}

// clone keeps what is put in twice from being changed twice.
func clone(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var out any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		panic(err)
	}
	return out
}

// Thousands of headers with right checksums and one or two hostile values: Read never
// panics, every refusal has its reason, and what Read accepts luks.go and cryptsetup
// accept too.
func TestHostileValuesEverywhere(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	good := twoSlots(t)
	path := filepath.Join(t.TempDir(), "volume")
	accepted, refused := 0, map[Reason]int{}
	for i := range 1200 {
		var v any
		check(t, json.Unmarshal(good, &v))
		for range 1 + random.IntN(2) {
			v = mutate(random, v)
		}
		text := must[[]byte](t)(json.Marshal(v))
		if len(text) >= HeaderSize-binarySize {
			continue
		}
		d := forge(t, text)
		_, _, err := Read(d, smallSize)
		if err != nil {
			if ReasonOf(err) == "" {
				t.Fatalf("no reason: %v\n%s", err, text)
			}
			refused[ReasonOf(err)]++
			continue
		}
		accepted++
		luksGoSurvives(t, text)
		if i%8 != 0 {
			continue // a process each is what takes the time
		}
		check(t, os.WriteFile(path, d, 0o600))
		if out, err := tryCryptsetup(t, nil, "luksDump", path); err != nil {
			t.Errorf("cryptsetup refuses what Read accepts: %s\n%s", out, text)
		}
	}
	if accepted < 20 || refused[ReasonMetadata] < 200 || refused[ReasonUnsupported] < 20 {
		t.Errorf("%d accepted, refused %v", accepted, refused)
	}
}
