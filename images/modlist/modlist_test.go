package modlist

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const id = "0123456789abcdef0123456789abcdef01234567"

func note(hexID string) []byte {
	b, err := hex.DecodeString(hexID)
	if err != nil {
		panic(err)
	}
	n := append([]byte("\x04\x00\x00\x00"), byte(len(b)), 0, 0, 0, 3, 0, 0, 0)
	return append(append(n, "GNU\x00"...), b...)
}

// ko is a module file with nothing but a note in it.
func ko(hexID string) []byte {
	names := []byte("\x00.note.gnu.build-id\x00.shstrtab\x00")
	n := note(hexID)
	le := binary.LittleEndian
	out := make([]byte, 64)
	out = append(append(out, n...), names...)
	shoff := len(out)
	for _, s := range [][4]uint64{{}, {1, 7, 64, uint64(len(n))}, {20, 3, 64 + uint64(len(n)), uint64(len(names))}} {
		out = le.AppendUint32(le.AppendUint32(out, uint32(s[0])), uint32(s[1]))
		for _, v := range []uint64{0, 0, s[2], s[3], 0, 1, 0} {
			out = le.AppendUint64(out, v)
		}
	}
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 1)
	le.PutUint16(out[18:], 62)
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[40:], uint64(shoff))
	le.PutUint16(out[52:], 64)
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], 3)
	le.PutUint16(out[62:], 2)
	return out
}

func packed(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch how {
	case "xz":
		w, err = xz.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out)
	case "gzip":
		w = gzip.NewWriter(&out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBuild_SortsAndReadsEveryPacking(t *testing.T) {
	other := "ff" + id[2:]
	file, err := Build([]Source{{"veth", ko(id)}, {"br-netfilter", packed(t, "xz", ko(other))}, {"overlay", packed(t, "zstd", ko(id))},
		{"bridge", packed(t, "gzip", ko(id))}, {"veth", ko(id)}})
	if err != nil {
		t.Fatal(err)
	}
	want := header + "\nbr_netfilter " + other + "\nbridge " + id + "\noverlay " + id + "\nveth " + id + "\n"
	if string(file) != want {
		t.Errorf("got:\n%s", file)
	}
	list, err := Parse(file)
	if err != nil || len(list) != 4 || list["br_netfilter"] != other {
		t.Errorf("%v, %v", list, err)
	}
}

func TestBuild_Refuses(t *testing.T) {
	for name, m := range map[string][]Source{
		"no module": {{"a", []byte("text")}}, "empty": {{"a", nil}}, "broken xz": {{"a", packed(t, "xz", ko(id))[:60]}},
		"two builds of one module": {{"a", ko(id)}, {"a", ko("ff" + id[2:])}}, "no build id": {{"a", bytes.Replace(ko(id), []byte(".note"), []byte(".nope"), 1)}},
	} {
		if b, err := Build(m); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func TestParse_RefusesAnotherForm(t *testing.T) {
	good := header + "\na " + id + "\nb " + id + "\n"
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{"empty": "", "no header": "a " + id + "\n", "unsorted": header + "\nb " + id + "\na " + id + "\n",
		"twice": header + "\na " + id + "\na " + id + "\n", "no end": strings.TrimSuffix(good, "\n"), "dash": header + "\na-b " + id + "\n",
		"upper case": header + "\na " + strings.ToUpper(id) + "\n", "no id": header + "\na\n", "blank line": header + "\n\na " + id + "\n", "space": header + "\na  " + id + "\n"} {
		if l, err := Parse([]byte(s)); err == nil {
			t.Errorf("%s: %v", name, l)
		}
	}
}

func TestNoteBuildID_Refuses(t *testing.T) {
	for name, edit := range map[string]func([]byte) []byte{
		"cut":          func(b []byte) []byte { return b[:20] },
		"short":        func(b []byte) []byte { return b[:4] },
		"other type":   func(b []byte) []byte { b[8] = 1; return b },
		"other vendor": func(b []byte) []byte { b[12] = 'X'; return b },
		"huge":         func(b []byte) []byte { b[5] = 1; return b },
	} {
		if s, err := NoteBuildID(edit(note(id))); err == nil {
			t.Errorf("%s: %s", name, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + "\na " + id + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := Parse(b); err == nil && !bytes.Equal(l.encode(), b) {
			t.Fatal("two spellings of one list")
		}
	})
}

func FuzzBuildID(f *testing.F) {
	f.Add(ko(id))
	f.Add(packed(f, "xz", ko(id)))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = BuildID(b) })
}
