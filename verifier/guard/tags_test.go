package guard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/image"
	"portcullis/verifier/verity"
)

// testTags are tags on every processor, quick or not.
func testTags() *tags { return newTags(verity.NewTagger()) }

// Where nothing is said there are tags if the processor makes them quick.
func TestTagsWhereTheyAreQuick(t *testing.T) {
	for _, given := range []*verity.Tagger{nil, verity.NewTagger()} {
		g := before(t, &listed{}, func(o *Options) { o.Tagger = given })
		if want := given != nil || verity.QuickTagger() != nil; (g.tags != nil) != want {
			t.Errorf("tags: %v, want %v", g.tags != nil, want)
		}
	}
}

func randomBytes(size int, seed byte) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// startOf compares a layer as a start does where there is no verity; with read as a sample does.
func startOf(t *testing.T, k *tags, l layerFiles, read bool) error {
	t.Helper()
	c := &comparison{files: &sealer{refusal: verity.ErrUnsupported}, turns: new(turns), form: formVerity, read: read, tags: k, image: "image"}
	err := errors.Join(c.onDisk(l.dir), c.sameFiles(t.Context(), l.dir, listOf(l.files)))
	if err == nil {
		err = c.contents(t.Context())
	}
	if err == nil && c.said.String() != LayersHashed {
		t.Errorf("the layers are said to be %q", c.said)
	}
	return err
}

func refusedForStore(t *testing.T, what string, err error, detail string) {
	t.Helper()
	own, ok := errors.AsType[*Error](err)
	if !ok || own.Reason != ReasonImageStore || own.Detail != detail {
		t.Errorf("%s: not refused because %s: %v", what, detail, err)
	}
}

const notTheImages = `/"f0" is not the image's`

// The first start hashes and makes tags, the next ones go by them; small files, and comparisons
// that are no start, are hashed.
func TestStartsGoByTags(t *testing.T) {
	k := testTags()
	l := newLayerFiles(t, randomBytes(wideFile+7, 1), randomBytes(tagLeast, 2), randomBytes(tagLeast-1, 3), randomBytes(tagLeast, 2))
	if err := startOf(t, k, l, true); err != nil || k.files != 0 {
		t.Fatalf("a comparison that is no start: %d files have tags, %v", k.files, err)
	}
	var made *verity.Tags
	for range 2 {
		if err := startOf(t, k, l, false); err != nil {
			t.Fatal(err)
		}
		// Two of the three files are the same.
		now := k.of("image", l.files[0].Sum)
		if k.files != 2 || k.segments != 9+1 || len(now) != 9 || len(k.of("image", l.files[2].Sum)) != 0 {
			t.Fatalf("%d files with %d segments have tags, the first %d", k.files, k.segments, len(now))
		}
		if made != nil && &(*made)[0] != &now[0] {
			t.Error("hashed again, although there were tags")
		}
		made = &now
	}
	// Whoever has tags of other bytes here decides what is let pass: that is what a start goes by, and nothing else.
	other := append(randomBytes(wideFile+6, 1), 'x')
	_, forged, err := k.tagger.Of(bytes.NewReader(other), int64(len(other)), 2)
	if err != nil {
		t.Fatal(err)
	}
	k.keep("image", l.files[0].Sum, forged)
	l.write(t, 0, other)
	if err := startOf(t, k, l, false); err != nil {
		t.Errorf("a start did not go by the tags: %v", err)
	}
	refusedForStore(t, "a sample", startOf(t, k, l, true), notTheImages)
}

// TestAttack_FileChangedBehindItsTags: what is not what the tags were made of is hashed, refused for the reason
// that it always was, and refused as often as it is tried. What is put right again passes.
func TestAttack_FileChangedBehindItsTags(t *testing.T) {
	content := randomBytes(3*verity.SegmentSize+9, 1)
	for name, change := range map[string]func(b []byte){
		"first byte":        func(b []byte) { b[0] ^= 1 },
		"last byte":         func(b []byte) { b[len(b)-1] ^= 0x80 },
		"byte of a segment": func(b []byte) { b[verity.SegmentSize+77] ^= 1 },
		"all of it":         func(b []byte) { copy(b, randomBytes(len(b), 2)) },
		"segments in another order": func(b []byte) {
			first := bytes.Clone(b[:verity.SegmentSize])
			copy(b, b[verity.SegmentSize:2*verity.SegmentSize])
			copy(b[verity.SegmentSize:], first)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, k := range []*tags{testTags(), nil} { // the same with tags and without
				l := newLayerFiles(t, content)
				if err := startOf(t, k, l, false); err != nil {
					t.Fatal(err)
				}
				other := bytes.Clone(content)
				change(other)
				l.write(t, 0, other)
				for range 3 {
					refusedForStore(t, name, startOf(t, k, l, false), notTheImages)
				}
				l.write(t, 0, content)
				if err := startOf(t, k, l, false); err != nil {
					t.Errorf("put right again: %v", err)
				}
			}
		})
	}
}

// TestAttack_FileChangedBeforeItsFirstStart: tags of what is not the image's are not kept.
func TestAttack_FileChangedBeforeItsFirstStart(t *testing.T) {
	k := testTags()
	content := randomBytes(2*verity.SegmentSize, 1)
	l := newLayerFiles(t, content)
	other := bytes.Clone(content)
	other[5] ^= 1
	l.write(t, 0, other)
	for range 3 {
		refusedForStore(t, "changed before", startOf(t, k, l, false), notTheImages)
		if k.files != 0 || k.of("image", l.files[0].Sum) != nil {
			t.Fatal("the tags of other content were kept")
		}
	}
}

// Tags of one image are no other's, have their bounds, and go with their image.
func TestTagsHaveBounds(t *testing.T) {
	k := testTags()
	sum := func(i int) verity.Sum { return sumOf(fmt.Append(nil, i)) }
	for i := range tagFiles + 10 {
		k.keep("many", sum(i), make(verity.Tags, 1))
	}
	if k.files != tagFiles || len(k.images["many"]) != tagFiles || k.of("many", sum(tagFiles)) != nil || k.of("other", sum(0)) != nil {
		t.Errorf("%d files have tags", k.files)
	}
	k.keep("many", sum(0), make(verity.Tags, 3)) // in the place of others
	if k.files != tagFiles || k.segments != tagFiles+2 || len(k.of("many", sum(0))) != 3 {
		t.Errorf("%d files with %d segments", k.files, k.segments)
	}
	k.only(map[string]bool{"other": true})
	if k.files != 0 || k.segments != 0 || len(k.images) != 0 {
		t.Errorf("of an image that is gone %d files with %d segments are left", k.files, k.segments)
	}
	k.keep("large", sum(1), make(verity.Tags, tagSegments))
	k.keep("other", sum(2), make(verity.Tags, 1))
	if k.files != 1 || k.segments != tagSegments || k.of("other", sum(2)) != nil {
		t.Errorf("beyond the bound: %d files with %d segments", k.files, k.segments)
	}
	k.only(map[string]bool{"large": true})
	if len(k.of("large", sum(1))) != tagSegments {
		t.Error("the tags of an image that is there are gone")
	}
	(*tags)(nil).only(nil) // where there are none, nothing goes
}

// With a real engine: a start makes tags, the next one goes by them, and they go when the image does.
func TestTagsOfAnEngine(t *testing.T) {
	r := newRig(t)
	r.kernel.take(t, &sealer{refusal: verity.ErrUnsupported})
	i, err := dockerd.Make("test/tagged:1", r.probe, string(randomBytes(verity.SegmentSize, 9)))
	if err != nil {
		t.Fatal(err)
	}
	id := r.approvals.identity(t, i)
	r.approvals.approve(t, i, "task", plain)
	out, err := r.docker(t, bytes.NewReader(i.Tar), "load", "-q")
	if err != nil {
		t.Fatal(err, out)
	}
	name := fmt.Sprintf("%s:test-%d-1", Repository, r.approvals.next)
	kept := func() int {
		r.tags.mu.Lock()
		defer r.tags.mu.Unlock()
		return len(r.tags.images[id.Config])
	}
	for range 2 {
		if out, err := r.docker(t, nil, "run", "--rm", name, "say", "it"); err != nil {
			t.Fatal(err, out)
		}
		if kept() < 2 { // the program, and what is beside it
			t.Fatalf("%d files have tags", kept())
		}
	}
	held, err := r.held(t.Context(), id)
	if err == nil {
		err = r.opt.Engine.RemoveImage(t.Context(), held.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the tags", time.Minute, func() bool { return kept() == 0 })
}

// layerFiles is a layer and its list.
type layerFiles struct {
	dir   string
	files []image.File
}

func newLayerFiles(t *testing.T, contents ...[]byte) layerFiles {
	t.Helper()
	dir, files := layerOf(t, contents...)
	return layerFiles{dir, files}
}

// write changes a file in its place.
func (l layerFiles) write(t *testing.T, i int, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, l.files[i].Path), b, 0o644); err != nil {
		t.Fatal(err)
	}
}
