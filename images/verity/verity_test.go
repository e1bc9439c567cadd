package verity_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"portcullis/images/verity"
)

// data returns that many blocks, no two alike.
func data(blocks int) []byte {
	b := make([]byte, blocks*verity.BlockSize)
	for i := range blocks {
		sum := sha256.Sum256(fmt.Append(nil, i))
		copy(b[i*verity.BlockSize:], bytes.Repeat(sum[:], verity.BlockSize/len(sum)))
	}
	return b
}

func build(t testing.TB, content, salt []byte) *verity.Tree {
	t.Helper()
	tree, err := verity.Build(bytes.NewReader(content), int64(len(content)), salt)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// veritysetup is the reference: sizes around every change in the number of levels.
func TestBuildEqualsVeritysetup(t *testing.T) {
	tool, err := exec.LookPath("veritysetup")
	if err != nil {
		t.Fatal("veritysetup is missing: install cryptsetup-bin")
	}
	rootLine := regexp.MustCompile(`Root hash:\s*([0-9a-f]+)`)
	salts := [][]byte{bytes.Repeat([]byte{0xa5}, 32), []byte("x"), bytes.Repeat([]byte{1}, 256)}
	for i, blocks := range []int{1, 2, 127, 128, 129, 255, 1000, 128 * 128, 128*128 + 1} {
		content, salt := data(blocks), salts[i%len(salts)]
		tree := build(t, content, salt)
		dir := t.TempDir()
		image := filepath.Join(dir, "image")
		if err := os.WriteFile(image, content, 0o600); err != nil {
			t.Fatal(err)
		}
		// The tree lies behind the data in the same file, as in root.img.
		out, err := exec.Command(tool, "format", "--no-superblock", "--format=1", "--hash=sha256",
			"--data-block-size=4096", "--hash-block-size=4096", fmt.Sprint("--data-blocks=", blocks),
			fmt.Sprint("--hash-offset=", len(content)), "--salt="+hex.EncodeToString(salt), image, image).CombinedOutput()
		if err != nil {
			t.Fatalf("veritysetup: %v\n%s", err, out)
		}
		m := rootLine.FindSubmatch(out)
		if m == nil || string(m[1]) != tree.Root() {
			t.Errorf("%d blocks: root %s, veritysetup says\n%s", blocks, tree.Root(), out)
		}
		whole, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(whole[len(content):], tree.Hashes) {
			t.Errorf("%d blocks: the tree differs from veritysetup's", blocks)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, size := range []int64{0, -4096, 1, 4097} {
		if _, err := verity.Build(bytes.NewReader(data(2)), size, nil); err == nil {
			t.Errorf("size %d is accepted", size)
		}
	}
	if _, err := verity.Build(bytes.NewReader(data(2)), 3*4096, nil); err == nil {
		t.Error("data shorter than its size is accepted")
	}
	if _, err := verity.Build(bytes.NewReader(data(2)), 4096, make([]byte, 257)); err == nil {
		t.Error("a salt of 257 bytes is accepted")
	}
}

func BenchmarkBuild(b *testing.B) {
	content := data(200 << 20 / verity.BlockSize)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		build(b, content, make([]byte, 32))
	}
}
