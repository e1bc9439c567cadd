package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// childEnv makes this test binary append to a journal until it is killed.
const childEnv = "PORTCULLIS_TEST_JOURNAL"

func TestMain(m *testing.M) {
	path := os.Getenv(childEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	j, _, err := Open(path, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		seq, err := j.Append([]byte("record " + strings.Repeat("x", 3000)))
		if err != nil {
			os.Exit(1)
		}
		fmt.Println(seq) // promised from here on
	}
}

func open1(t *testing.T, path string) (*Journal, []string, Report) {
	t.Helper()
	var all []string
	j, report, err := Open(path, func(r Record) error {
		if r.Seq != uint64(len(all)+1) {
			t.Errorf("record %d comes as number %d", r.Seq, len(all)+1)
		}
		all = append(all, string(r.Payload))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, all, report
}

// written makes a journal with n records and returns its path and bytes.
func written(t *testing.T, n int) (string, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "j")
	j, _, _ := open1(t, path)
	for i := range n {
		if _, err := j.Append([]byte("record " + strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b
}

func TestWhatWasWrittenIsReadBack(t *testing.T) {
	path, _ := written(t, 3)
	j, all, report := open1(t, path)
	if len(all) != 3 || all[2] != "record 2" || report.TornTail != 0 {
		t.Fatalf("%q, %+v", all, report)
	}
	if seq, err := j.Append([]byte("more")); seq != 4 || err != nil {
		t.Fatal(seq, err)
	}
	seq, head := j.Head()
	if _, _, err := Open(path, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	if report, err := ReadFile(path, nil); err != nil || report.Records != seq || report.Head != head {
		t.Errorf("%+v, %v", report, err)
	}
	j.Close()
	if _, err := j.Append([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
}

func TestImpossibleRecordsAreRefused(t *testing.T) {
	j, _, _ := open1(t, filepath.Join(t.TempDir(), "j"))
	defer j.Close()
	for _, n := range []int{0, MaxPayload + 1} {
		if _, err := j.Append(make([]byte, n)); err == nil {
			t.Errorf("%d bytes were taken", n)
		}
	}
	if _, err := j.Append(make([]byte, MaxPayload)); err != nil {
		t.Error(err)
	}
}

// TestEveryTornTailIsCut cuts the file at each byte, and fills up with zeros
// as a file system may after a power cut.
func TestEveryTornTailIsCut(t *testing.T) {
	_, whole := written(t, 3)
	starts := []int{}
	if _, err := Read(bytes.NewReader(whole), func(r Record) error { starts = append(starts, int(r.Offset)); return nil }); err != nil {
		t.Fatal(err)
	}
	starts = append(starts, len(whole))
	for cut := range len(whole) {
		want := 0
		for want < 3 && starts[want+1] <= cut {
			want++
		}
		for _, zeros := range []int{0, 700} {
			path := filepath.Join(t.TempDir(), "j")
			if err := os.WriteFile(path, append(append([]byte{}, whole[:cut]...), make([]byte, zeros)...), 0o600); err != nil {
				t.Fatal(err)
			}
			if cut < headSize && zeros > 0 {
				continue // a head is written and synced alone
			}
			j, all, report := open1(t, path)
			if len(all) != want || cut >= headSize && report.TornTail != int64(cut-starts[want]+zeros) {
				t.Fatalf("cut at %d with %d zeros: %d records, %+v", cut, zeros, len(all), report)
			}
			if seq, err := j.Append([]byte("next")); err != nil || seq != uint64(want+1) {
				t.Fatalf("cut at %d: append %d, %v", cut, seq, err)
			}
			j.Close()
			if report, err := ReadFile(path, nil); err != nil || report.Records != uint64(want+1) || report.TornTail != 0 {
				t.Fatalf("cut at %d: %+v, %v", cut, report, err)
			}
		}
	}
}

// TestEveryChangedByteIsFound changes each byte before the last record.
func TestEveryChangedByteIsFound(t *testing.T) {
	path, whole := written(t, 4)
	var last int64
	Read(bytes.NewReader(whole), func(r Record) error { last = r.Offset; return nil })
	for i := range int(last) {
		changed := append([]byte{}, whole...)
		changed[i] ^= 0x40
		os.WriteFile(path, changed, 0o600)
		_, _, err := Open(path, nil)
		var broken *BrokenError
		if !errors.As(err, &broken) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if i >= headSize && (broken.Offset > int64(i) || broken.Seq == 0) {
			t.Fatalf("byte %d changed: named record %d at %d", i, broken.Seq, broken.Offset)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, changed) {
			t.Fatalf("byte %d changed: a broken journal was written to", i)
		}
	}
}

func TestAttack_RecordsTakenOutPutInOrExchanged(t *testing.T) {
	_, whole := written(t, 4)
	var at []int64
	Read(bytes.NewReader(whole), func(r Record) error { at = append(at, r.Offset); return nil })
	at = append(at, int64(len(whole)))
	frame := func(i int) []byte { return whole[at[i]:at[i+1]] }
	_, other := written(t, 2)
	foreign := other[headSize:]
	head := whole[:headSize]
	forged, _ := encode(Hash{}, 2, []byte("forged"))
	tests := map[string][][]byte{
		"one taken out":      {head, frame(0), frame(2), frame(3)},
		"the first is gone":  {head, frame(1), frame(2), frame(3)},
		"two exchanged":      {head, frame(0), frame(2), frame(1), frame(3)},
		"one twice":          {head, frame(0), frame(1), frame(1), frame(2)},
		"one forged":         {head, frame(0), forged, frame(2), frame(3)},
		"another's appended": {head, frame(0), frame(1), frame(2), frame(3), foreign},
		"no journal":         {[]byte("#!/bin/sh\necho no journal at all\n")},
		"another version":    {[]byte("portcullis-jrnl\x02"), frame(0)},
	}
	for name, parts := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(bytes.Join(parts, nil)), nil)
			var broken *BrokenError
			if !errors.As(err, &broken) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestErrorOfTheReaderEndsTheOpening(t *testing.T) {
	path, _ := written(t, 2)
	mine := errors.New("mine")
	if _, _, err := Open(path, func(Record) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
	j, _, _ := open1(t, path) // the lock is free again
	j.Close()
}

func TestConcurrentAppendsAndSyncs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, _, _ := open1(t, path)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if _, err := j.Append([]byte("x")); err != nil {
					t.Error(err)
				}
				if err := j.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	j.Close()
	if report, err := ReadFile(path, nil); err != nil || report.Records != 400 {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestKillLosesNothing kills a writer with SIGKILL: what it had been promised is there.
func TestKillLosesNothing(t *testing.T) {
	for range 3 {
		path := filepath.Join(t.TempDir(), "j")
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+path)
		var out bytes.Buffer
		child.Stdout = &out
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
			if st, err := os.Stat(path); err == nil && st.Size() > 300_000 {
				break
			}
		}
		child.Process.Kill()
		child.Wait()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		promised, _ := strconv.Atoi(lines[max(0, len(lines)-2)]) // the last line may be torn itself
		j, all, _ := open1(t, path)
		j.Close()
		if promised == 0 || len(all) < promised {
			t.Errorf("%d records were promised, %d are there", promised, len(all))
		}
	}
}

// FuzzRead: any bytes are a journal, a torn one or a broken one; never a panic,
// and what is read back can be written on.
func FuzzRead(f *testing.F) {
	frame1, h := encode(genesis, 1, []byte("one"))
	frame2, _ := encode(h, 2, []byte("two"))
	f.Add([]byte{})
	f.Add(fileHead())
	f.Add(bytes.Join([][]byte{fileHead(), frame1, frame2}, nil))
	f.Add(bytes.Join([][]byte{fileHead(), frame1, frame2[:30]}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := uint64(0)
		report, err := Read(bytes.NewReader(b), func(r Record) error { n++; return nil })
		if report.Records != n || report.Valid > int64(len(b)) {
			t.Fatalf("%+v after %d records", report, n)
		}
		if err == nil && report.Valid+report.TornTail != int64(len(b)) {
			t.Fatalf("%+v does not account for %d bytes", report, len(b))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	j, _, err := Open(filepath.Join(b.TempDir(), "j"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	payload := bytes.Repeat([]byte("x"), 400)
	for b.Loop() {
		if _, err := j.Append(payload); err != nil {
			b.Fatal(err)
		}
	}
}
