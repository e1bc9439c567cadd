package guard

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis/verifier/verity"
)

// What a comparison had to hash is what is asked for before the next one; what has
// verity, and what is small, is not.
func TestHashedFilesAreAskedForAhead(t *testing.T) {
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.file.Images["image"] = loadedImage{}
	seals := &sealer{refusal: verity.ErrUnsupported}
	g := &Guard{state: s, opt: Options{Verity: seals}, slow: map[string][]string{"gone": {"/none"}}}
	dir, files := layerOf(t, make([]byte, aheadLeast), make([]byte, aheadLeast-1))
	compare := func() {
		t.Helper()
		c := g.comparer(false)
		if err := c.onDisk(dir); err != nil {
			t.Fatal(err)
		}
		if err := c.sameFiles(t.Context(), dir, listOf(files)); err != nil {
			t.Fatal(err)
		}
		if err := c.contents(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.compared("image", c)
	}
	compare()
	if !slices.Equal(g.slow["image"], []string{dir + "/f0"}) || len(g.slow) != 1 || g.layers.String() != LayersHashed {
		t.Fatalf("asked for: %v; layers %s", g.slow, g.layers)
	}
	g.ahead("image")
	g.work.Wait()
	// What is not a file any more, or is gone, holds nothing up.
	if err := os.Remove(dir + "/f0"); err != nil {
		t.Fatal(err)
	}
	g.ahead("image")
	g.work.Wait()
	if err := unix.Mkfifo(dir+"/f0", 0o644); err != nil {
		t.Fatal(err)
	}
	g.ahead("image")
	g.work.Wait()

	dir, files = layerOf(t, make([]byte, aheadLeast))
	seals.refusal, seals.sums = nil, map[uint64]verity.Sum{}
	compare()
	if len(g.slow) != 0 || g.layers.String() != LayersSealed {
		t.Errorf("asked for: %v; layers %s", g.slow, g.layers)
	}
}
