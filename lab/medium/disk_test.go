package medium

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// served is a disk of n sectors on a socket.
func served(t *testing.T, n int64) (d *Disk, image, socket string) {
	t.Helper()
	dir := t.TempDir()
	image, socket = filepath.Join(dir, "disk.img"), filepath.Join(dir, "s")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(n * Sector); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if d, err = Serve(image, socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, image, socket
}

func sectors(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n*Sector) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFlushedAndThroughStay: whatever the dice say, what was flushed or written
// through is there, and what was not is old or new in each sector.
func TestFlushedAndThroughStay(t *testing.T) {
	seen := map[byte]int{}
	losses := Loss{}
	for seed := range uint64(40) {
		d, image, _ := served(t, 64)
		must(t, d.write(sectors(8, 1), 8*Sector, 0, false))
		must(t, d.flush())
		must(t, d.write(sectors(8, 2), 8*Sector, 0, false))         // unsafe
		must(t, d.write(sectors(8, 3), 8*Sector, 4*Sector, false))  // unsafe, over half of it
		must(t, d.write(sectors(2, 4), 2*Sector, 6*Sector, true))   // through, over both
		must(t, d.write(sectors(4, 5), 4*Sector, 32*Sector, false)) // safe by the next
		must(t, d.flush())
		must(t, d.write(nil, 4*Sector, 32*Sector, false)) // unsafe zeros
		must(t, d.write(sectors(8, 6), 8*Sector, 40*Sector, false))
		l, err := d.Cut(rand.New(rand.NewPCG(seed, 0)))
		must(t, err)
		must(t, d.Close())
		if l.Unsafe != 2 || l.Requests != 9 {
			t.Fatalf("%+v", l)
		}
		losses.Lost += l.Lost
		losses.Torn += l.Torn
		b, err := os.ReadFile(image)
		must(t, err)
		for i, want := range map[int]string{0: "\x02", 3: "\x02", 4: "\x03", 5: "\x03", 6: "\x04", 7: "\x04", 8: "\x03", 11: "\x03",
			12: "\x00", 32: "\x00\x05", 35: "\x00\x05", 40: "\x00\x06", 47: "\x00\x06", 48: "\x00"} {
			got := b[i*Sector]
			if !strings.Contains(want, string(got)) || !bytes.Equal(b[i*Sector:(i+1)*Sector], sectors(1, got)) {
				t.Fatalf("seed %d: sector %d holds %d, want one of %q", seed, i, got, want)
			}
			if i == 40 || i == 32 {
				seen[got]++
			}
		}
	}
	if seen[0] == 0 || seen[5] == 0 || seen[6] == 0 || losses.Lost == 0 || losses.Torn == 0 {
		t.Errorf("not everything happens: %v %+v", seen, losses)
	}
}

// TestOverlappingUnsafeWrites: a sector written several times holds any of the
// values, never one that a later write of the same sector, which stayed, replaced.
func TestOverlappingUnsafeWrites(t *testing.T) {
	seen := map[byte]int{}
	for seed := range uint64(60) {
		d, image, _ := served(t, 8)
		for i := range byte(3) {
			must(t, d.write(sectors(1, i+1), Sector, 0, false))
		}
		must(t, d.write(sectors(1, 9), Sector, Sector, true))
		l, err := d.Cut(rand.New(rand.NewPCG(seed, 1)))
		must(t, err)
		must(t, d.Close())
		b, err := os.ReadFile(image)
		must(t, err)
		seen[b[0]]++
		if b[Sector] != 9 {
			t.Fatal("what was written through is lost")
		}
		if l.Lost == 0 && b[0] != 3 {
			t.Fatalf("nothing lost, and the sector holds %d", b[0])
		}
	}
	for v := range byte(4) {
		if seen[v] == 0 {
			t.Errorf("the sector never holds %d: %v", v, seen)
		}
	}
}

// TestCacheIsBounded: of more than the cache holds the oldest is safe.
func TestCacheIsBounded(t *testing.T) {
	const piece = 8 << 20
	d, image, _ := served(t, 10*piece/Sector)
	for i := range int64(10) {
		must(t, d.write(bytes.Repeat([]byte{byte(i + 1)}, piece), piece, i*piece, false))
	}
	l, err := d.Cut(rand.New(rand.NewPCG(1, 1)))
	must(t, err)
	must(t, d.Close())
	if l.Unsafe != cacheSize/piece {
		t.Errorf("%d unsafe", l.Unsafe)
	}
	b, err := os.ReadFile(image)
	must(t, err)
	if b[0] != 1 || b[2*piece-1] != 2 {
		t.Error("the oldest writes are lost")
	}
}

// TestQEMUSpeaksWithIt: QEMU's own client reads, writes, flushes, trims and writes
// zeros; after the moment of CutAfter nothing is answered.
func TestQEMUSpeaksWithIt(t *testing.T) {
	program, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Fatal("qemu-io not found; install the package qemu-utils")
	}
	d, image, socket := served(t, 2048)
	target := "nbd+unix:///?socket=" + socket
	here := Region{65536, 131072}
	d.Count(here)
	out, err := exec.Command(program, "-f", "raw", "-t", "writeback", "-d", "unmap", target, "-c", "write -P 17 64k 4k", "-c", "write -f -P 18 512 512",
		"-c", "write -P 19 128k 8k", "-c", "write -z 128k 4k", "-c", "discard 132k 4k", "-c", "flush", "-c", "read -P 17 64k 4k", "-c", "read -P 0 128k 8k").CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		t.Fatalf("%v: %s", err, out)
	}
	if n := d.Writes(here); n != 1 {
		t.Errorf("%d writes counted", n)
	}
	d.CutAfter(1, here)
	client := exec.Command(program, "-f", "raw", "-t", "writeback", target, "-c", "write -P 20 0 512", "-c", "write -P 21 64k 512", "-c", "write -P 22 64k 512")
	must(t, client.Start())
	defer client.Wait()
	defer client.Process.Kill()
	select {
	case <-d.Fired():
	case <-time.After(time.Minute):
		t.Fatal("the power does not fail")
	}
	l, err := d.Cut(rand.New(rand.NewPCG(3, 3)))
	must(t, err)
	if l.Unsafe != 2 {
		t.Errorf("%+v", l)
	}
	if _, err := d.Cut(rand.New(rand.NewPCG(3, 3))); err == nil {
		t.Error("cut twice")
	}
	client.Process.Kill()
	must(t, d.Close())
	b, err := os.ReadFile(image)
	must(t, err)
	if b[65536] == 22 || b[512] != 18 || b[65536+512] != 17 {
		t.Errorf("%d %d %d", b[65536], b[512], b[65536+512])
	}
}

// memory is a small disk for the fuzzer.
type memory []byte

func (m memory) bytes() int64                              { return int64(len(m)) }
func (m memory) read(b []byte, at int64) error             { copy(b, m[at:at+int64(len(b))]); return nil }
func (m memory) write(b []byte, n, at int64, _ bool) error { copy(m[at:at+n], b); return nil }
func (m memory) flush() error                              { return nil }
func (m memory) trim(at, n int64) error                    { clear(m[at : at+n]); return nil }

type halves struct {
	io.Reader
	io.Writer
}

// FuzzServe: whatever a client sends, nothing outside of the disk is touched.
func FuzzServe(f *testing.F) {
	client := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	option := func(kind uint32, data []byte) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, kind)
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		return append(b, data...)
	}
	request := func(kind uint16, at uint64, n uint32, data []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, magicAsk)
		b = binary.BigEndian.AppendUint16(b, cmdFUA)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, at)
		b = binary.BigEndian.AppendUint32(b, n)
		return append(b, data...)
	}
	agreed := bytes.Join([][]byte{client, option(8, nil), option(optGo, make([]byte, 6))}, nil)
	f.Add(bytes.Join([][]byte{agreed, request(cmdWrite, Sector, Sector, sectors(1, 1)), request(cmdRead, 0, 2*Sector, nil), request(cmdFlush, 0, 0, nil),
		request(cmdTrim, 0, Sector, nil), request(cmdZeroes, 0, Sector, nil), request(cmdDisconnect, 0, 0, nil)}, nil))
	f.Add(bytes.Join([][]byte{client, option(optExportName, []byte("x")), request(cmdRead, 1<<63, Sector, nil)}, nil))
	f.Add(bytes.Join([][]byte{agreed, request(cmdRead, 7*Sector, 2*Sector, nil), request(99, 0, Sector, nil)}, nil))
	f.Fuzz(func(t *testing.T, said []byte) {
		serve(halves{bytes.NewReader(said), io.Discard}, make(memory, 8*Sector))
	})
}

// TestCloseEndsAClientThatWaits: a request without power does not hold up the end.
func TestCloseEndsAClientThatWaits(t *testing.T) {
	d, _, socket := served(t, 8)
	if _, err := d.Cut(rand.New(rand.NewPCG(0, 0))); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", socket)
	must(t, err)
	defer c.Close()
	ended := make(chan error, 1)
	go func() { ended <- d.write(sectors(1, 1), Sector, 0, false) }()
	select {
	case err := <-ended:
		t.Fatalf("answered without power: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	must(t, d.Close())
	if err := <-ended; err == nil {
		t.Error("answered at the end")
	}
}
