package expect_test

import (
	"bytes"
	"crypto/sha256"
	"runtime"
	"slices"
	"testing"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
)

// counting is a draft that only counts.
type counting int

func (c *counting) WriteAt(p []byte, _ int64) (int, error) {
	*c += counting(len(p))
	return len(p), nil
}

// A reference is as large as a third of what attestd may have in memory: it goes through
// piece by piece.
func TestEnrol_HoldsPiecesOfAReference(t *testing.T) {
	const size = 8 << 20
	half := make([]byte, size)
	for i := range half {
		half[i] = byte(i >> 12)
	}
	key := protocol.OpKey{1}
	var macs []byte
	mask := &ktextmask.Mask{TextBase: textBase, TextSize: size}
	for piece := range slices.Chunk(half, protocol.KtextGranule) {
		m := key.MACs().KtextMAC(len(macs)/protocol.KtextMACSize, piece)
		macs = append(macs, m[:]...)
		mask.Stock = append(mask.Stock, sha256.Sum256(piece))
	}
	kernel := bzImage(append(slices.Clone(half), half...), 2*size)
	read := func() (*bytes.Reader, int64) { return bytes.NewReader(kernel), int64(len(kernel)) }
	for name, take := range map[string]func(w *counting) (any, error){
		"text": func(w *counting) (any, error) {
			r, n := read()
			bad, err := expect.CopyText(w, r, n, mask, key, macs)
			return len(bad), err
		},
		"read-only data": func(w *counting) (any, error) {
			r, n := read()
			found, err := expect.TakeRodata(w, r, n, textBase, size, key, &protocol.KrodataData{Base: textBase + size, Size: size, MACs: macs})
			return len(found), err
		},
	} {
		var written counting
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		bad, err := take(&written)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > size/4 {
			t.Errorf("%s: %d bytes were allocated for %d", name, n, size)
		}
		if err != nil || bad != 0 || written < size {
			t.Errorf("%s: %v bad, %v, %d bytes written", name, bad, err, written)
		}
	}
}
