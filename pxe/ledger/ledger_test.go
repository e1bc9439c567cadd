package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/internal/journal"
)

// childEnv makes this test binary serve into a ledger until it is killed.
const childEnv = "PORTCULLIS_TEST_LEDGER"

func TestMain(m *testing.M) {
	path := os.Getenv(childEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	l, _, err := Open(path, time.Now, func(Entry) {})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for n := 0; ; n++ {
		r := l.Begin(Entry{Session: "s", Artefact: "root.img", Transport: HTTP, Client: "10.77.0.2:1"})
		for i := range 3 {
			b := fmt.Appendf(nil, "response %d piece %d", n, i)
			if err := r.Piece(b); err != nil {
				os.Exit(1)
			}
			fmt.Println(hex.EncodeToString(b)) // sent
			r.Sent(b)
		}
		if err := r.End(Complete); err != nil {
			os.Exit(1)
		}
	}
}

func start(t *testing.T, path string) (*Ledger, []Entry) {
	t.Helper()
	var all []Entry
	l, _, err := Open(path, time.Now, func(e Entry) { all = append(all, e) })
	if err != nil {
		t.Fatal(err)
	}
	return l, all
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// written makes a ledger with a packet, a whole response and a cut one.
func written(t *testing.T) string {
	t.Helper()
	state := t.TempDir()
	path := Path(state)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, _ := start(t, path)
	if err := l.Packet(Entry{Session: "s1", Artefact: "offer", Transport: DHCP, Client: "255.255.255.255:68"}, []byte("offer")); err != nil {
		t.Fatal(err)
	}
	for i, result := range []string{Complete, Cut + ":connection-lost"} {
		r := l.Begin(Entry{Session: "s1", Artefact: "root.img", Transport: HTTP, Client: "10.77.0.2:5", Offset: 100})
		for _, piece := range []string{"first", "second"} {
			if err := r.Piece([]byte(piece)); err != nil {
				t.Fatal(err)
			}
			r.Sent([]byte(piece)[:len(piece)-i])
		}
		if err := r.End(result); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEntriesSayWhatWasSent(t *testing.T) {
	path := written(t)
	l, all := start(t, path)
	defer l.Close()
	if len(all) != 7 {
		t.Fatalf("%d entries", len(all))
	}
	want := []struct {
		kind   string
		id     uint64
		offset int64
		bytes  string
		result string
	}{
		{KindResponse, 1, 0, "offer", Complete},
		{KindPiece, 2, 100, "first", ""}, {KindPiece, 2, 105, "second", ""}, {KindResponse, 2, 100, "firstsecond", Complete},
		{KindPiece, 3, 100, "first", ""}, {KindPiece, 3, 105, "second", ""}, {KindResponse, 3, 100, "firssecon", Cut + ":connection-lost"},
	}
	for i, w := range want {
		e := all[i]
		if e.Kind != w.kind || e.ID != w.id || e.Offset != w.offset || e.Length != int64(len(w.bytes)) || e.SHA256 != sum([]byte(w.bytes)) || e.Result != w.result || e.Session != "s1" {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	if r := l.Begin(Entry{}); r.entry.ID != 4 {
		t.Errorf("ids begin again: %d", r.entry.ID)
	}
}

// TestInvariant03_KilledServerLeavesEverySentByteInTheLedger kills a server
// with SIGKILL and compares what it sent with what its ledger says.
func TestInvariant03_KilledServerLeavesEverySentByteInTheLedger(t *testing.T) {
	for range 3 {
		path := filepath.Join(t.TempDir(), "ledger")
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+path)
		var out bytes.Buffer
		child.Stdout = &out
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(2 * time.Millisecond) {
			if st, err := os.Stat(path); err == nil && st.Size() > 200_000 {
				break
			}
		}
		child.Process.Kill()
		child.Wait()
		l, all := start(t, path)
		l.Close()
		recorded := map[string]bool{}
		ended := map[uint64]string{}
		for _, e := range all {
			if e.Kind == KindPiece {
				recorded[e.SHA256] = true
				ended[e.ID] = ""
			} else {
				ended[e.ID] = e.Result
			}
		}
		lines := strings.Split(out.String(), "\n")
		if len(lines) < 100 {
			t.Fatalf("only %d pieces were sent", len(lines))
		}
		for _, line := range lines[:len(lines)-1] {
			b, err := hex.DecodeString(line)
			if err != nil {
				t.Fatal(err)
			}
			if !recorded[sum(b)] {
				t.Errorf("%q was sent and is not in the ledger", b)
			}
		}
		for id, result := range ended {
			if result == "" {
				t.Errorf("response %d has no end", id)
			}
		}
		if v, err := Verify(path); err != nil || !v.OK {
			t.Errorf("%+v, %v", v, err)
		}
	}
}

func TestInterruptedResponseIsClosedAtTheNextStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l, _ := start(t, path)
	r := l.Begin(Entry{Session: "s", Artefact: "hpc.efi", Transport: TFTP, Offset: 7})
	r.Piece([]byte("12345"))
	r.Piece([]byte("678"))
	l.Close() // without an end
	l, all := start(t, path)
	l.Close()
	last := all[len(all)-1]
	if last.Kind != KindResponse || last.Result != Interrupted || last.Offset != 7 || last.Length != 8 || last.SHA256 != "" {
		t.Errorf("%+v", last)
	}
	l, again := start(t, path)
	l.Close()
	if len(again) != len(all) {
		t.Error("it was closed twice")
	}
}

func TestShowAndVerify(t *testing.T) {
	path := written(t)
	var out bytes.Buffer
	if err := Show(&out, path, Filter{}, false); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 3 || !strings.Contains(lines[1], "root.img") || !strings.Contains(lines[2], "cut:connection-lost") {
		t.Errorf("%s", out.String())
	}
	out.Reset()
	if err := Show(&out, path, Filter{Pieces: true, Session: "s1"}, true); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var l Line
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &l); err != nil || len(lines) != 7 || l.Seq != 7 || l.Length != 9 {
		t.Errorf("%d lines, %+v, %v", len(lines), l, err)
	}
	out.Reset()
	if err := Show(&out, path, Filter{Session: "another"}, true); err != nil || out.Len() != 0 {
		t.Errorf("%q, %v", out.String(), err)
	}
	v, err := Verify(path)
	if err != nil || !v.OK || v.Records != 7 || v.Responses != 3 || v.Bytes != 25 || len(v.Head) != 64 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestVerifyNamesTheFirstBrokenRecord(t *testing.T) {
	path := written(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var at []int64
	if _, err := journal.ReadFile(path, func(r journal.Record) error { at = append(at, r.Offset); return nil }); err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(whole, []byte(`"length":11`), []byte(`"length":12`), 1)
	if bytes.Equal(changed, whole) {
		t.Fatal("nothing was changed")
	}
	tests := map[string]struct {
		bytes []byte
		want  uint64
	}{
		"a length is changed": {changed, 4},
		"a record is missing": {append(append([]byte{}, whole[:at[2]]...), whole[at[3]:]...), 3},
	}
	for name, tt := range tests {
		os.WriteFile(path, tt.bytes, 0o600)
		v, err := Verify(path)
		if err != nil || v.OK || v.BrokenSeq != tt.want || v.BrokenAt != at[tt.want-1] || v.Records != tt.want-1 || v.Detail == "" {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		if _, _, err := Open(path, time.Now, func(Entry) {}); err == nil {
			t.Errorf("%s: it was opened for writing", name)
		}
	}
	os.WriteFile(path, whole[:len(whole)-3], 0o600)
	if v, err := Verify(path); err != nil || !v.OK || v.TornTail == 0 || v.Records != 6 {
		t.Errorf("torn: %+v, %v", v, err)
	}
	if _, err := Verify(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing ledger was verified")
	}
}

func TestRecordsThatAreNoEntries(t *testing.T) {
	for _, payload := range []string{"", "x", "{}", `{"kind":"piece","offset":-1}`, `{"kind":"response","offset":9223372036854775807,"length":1}`, `{"kind":"other"}`} {
		path := filepath.Join(t.TempDir(), "ledger")
		j, _, err := journal.Open(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if payload != "" {
			if _, err := j.Append([]byte(payload)); err != nil {
				t.Fatal(err)
			}
		}
		j.Close()
		v, err := Verify(path)
		if err != nil || v.OK != (payload == "") || !v.OK && v.BrokenSeq != 1 {
			t.Errorf("%q: %+v, %v", payload, v, err)
		}
	}
}

// FuzzEntry: a decoded entry has a possible range.
func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"kind":"piece","id":1,"offset":5,"length":6}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decode(b)
		if err == nil && (e.Offset < 0 || e.Length < 0 || e.Offset+e.Length < e.Offset) {
			t.Fatalf("%+v", e)
		}
	})
}

func BenchmarkPiece(b *testing.B) {
	l, _, err := Open(filepath.Join(b.TempDir(), "ledger"), time.Now, func(Entry) {})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	chunk := make([]byte, 1<<20)
	r := l.Begin(Entry{Session: "s", Artefact: "root.img", Transport: HTTP})
	b.SetBytes(1 << 20)
	for b.Loop() {
		if err := r.Piece(chunk); err != nil {
			b.Fatal(err)
		}
		r.Sent(chunk)
	}
}
