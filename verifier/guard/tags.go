package guard

import (
	"maps"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"portcullis/verifier/verity"
)

// Where a file has no fs-verity all of it is read before every start, and hashing takes longer than
// reading does. So while a file is hashed for a start it gets tags in the same pass (verity.Tags), and where the
// digest was the image's they are kept: the next start of the image reads all of the file as well, and
// recognizes it by them. Whatever is not recognized is hashed as if there were no tags, and the digest
// decides, so that a refusal is the same one. Tags that were made of something else are not kept:
// they would let it pass the next time.
//
// Nothing of it is written down: the first start after verifierd's own has everything hashed. What
// is compared otherwise (samples, whole comparisons of what is suspect or loaded again) is hashed
// in any case: what a tag has let pass does not rest on it alone for long.

// Bounds of the tags of all images. Beyond them files are hashed, until an image is gone.
const (
	tagLeast    = 64 << 10 // bytes of a file that is worth it
	tagFiles    = 8192     // 1 MiB with all that is around them
	tagSegments = 1 << 15  // 768 KiB, for 16 GiB of files
)

// tags are those of files of images, by their digests. A nil one has none and takes none.
type tags struct {
	tagger *verity.Tagger

	mu       sync.Mutex
	images   map[string]map[verity.Sum]verity.Tags // by configuration
	files    int
	segments int
}

// newTags is nil without a tagger.
func newTags(t *verity.Tagger) *tags {
	if t == nil {
		return nil
	}
	return &tags{tagger: t, images: map[string]map[verity.Sum]verity.Tags{}}
}

// of are the tags of a file of an image.
func (k *tags) of(config string, sum verity.Sum) verity.Tags {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.images[config][sum]
}

// keep takes tags of what has this digest, if there is room.
func (k *tags) keep(config string, sum verity.Sum, made verity.Tags) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(config, sum)
	if k.files >= tagFiles || k.segments+len(made) > tagSegments {
		return
	}
	if k.images[config] == nil {
		k.images[config] = map[verity.Sum]verity.Tags{}
	}
	k.images[config][sum] = made
	k.files++
	k.segments += len(made)
}

// drop forgets a file. k.mu is held.
func (k *tags) drop(config string, sum verity.Sum) {
	if old, ok := k.images[config][sum]; ok {
		delete(k.images[config], sum)
		k.files--
		k.segments -= len(old)
	}
}

// only forgets all images but these.
func (k *tags) only(configs map[string]bool) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.images, func(config string, files map[verity.Sum]verity.Tags) bool {
		if configs[config] {
			return false
		}
		k.files -= len(files)
		for _, t := range files {
			k.segments -= len(t)
		}
		return true
	})
}

// digest is that of a file of which all is read: the one that it should have where its tags
// are right, else the one that it has.
func (c *comparison) digest(f *os.File, x *content, workers int) (verity.Sum, error) {
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice: it may be refused
	if c.tags == nil || c.read || c.image == "" || x.size < tagLeast {
		return verity.Of(f, x.size, workers)
	}
	if same, err := c.tags.tagger.Same(f, x.size, c.tags.of(c.image, x.sum), workers); err != nil || same {
		return x.sum, err
	}
	sum, made, err := c.tags.tagger.Of(f, x.size, workers)
	if err == nil && sum == x.sum {
		c.tags.keep(c.image, sum, made)
	}
	return sum, err
}
