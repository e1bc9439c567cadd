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
		if uint64(len(tree.Hashes)) != verity.TreeBlocks(uint64(blocks))*verity.BlockSize {
			t.Errorf("%d blocks: TreeBlocks says %d, the tree has %d bytes", blocks, verity.TreeBlocks(uint64(blocks)), len(tree.Hashes))
		}
	}
}

func TestVerifyBlockFindsEveryChange(t *testing.T) {
	const blocks = 128*128 + 5
	content, salt := data(blocks), []byte("salt")
	tree := build(t, content, salt)
	block := func(i int) []byte { return content[i*verity.BlockSize : (i+1)*verity.BlockSize] }
	for _, i := range []int{0, 127, 128, 128*128 - 1, 128 * 128, blocks - 1} {
		if err := verity.VerifyBlock(tree.RootHash, salt, tree.Hashes, blocks, uint64(i), block(i)); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		bad := bytes.Clone(block(i))
		bad[4095] ^= 1
		if verity.VerifyBlock(tree.RootHash, salt, tree.Hashes, blocks, uint64(i), bad) == nil {
			t.Errorf("block %d: a changed byte passes", i)
		}
		if verity.VerifyBlock(tree.RootHash, []byte("other"), tree.Hashes, blocks, uint64(i), block(i)) == nil {
			t.Errorf("block %d: another salt passes", i)
		}
	}
	// One byte in each level on the way of block 0.
	for _, at := range []int{0, verity.BlockSize, len(tree.Hashes) - 129*verity.BlockSize} {
		bad := bytes.Clone(tree.Hashes)
		bad[at] ^= 1
		if verity.VerifyBlock(tree.RootHash, salt, bad, blocks, 0, block(0)) == nil {
			t.Errorf("a changed byte %d of the tree passes", at)
		}
	}
	other := tree.RootHash
	other[31] ^= 1
	if verity.VerifyBlock(other, salt, tree.Hashes, blocks, 0, block(0)) == nil {
		t.Error("another root hash passes")
	}
	for _, i := range []uint64{blocks, 1 << 63} {
		if verity.VerifyBlock(tree.RootHash, salt, tree.Hashes, blocks, i, block(0)) == nil {
			t.Errorf("block %d exists", i)
		}
	}
	if verity.VerifyBlock(tree.RootHash, salt, tree.Hashes[1:], blocks, 0, block(0)) == nil {
		t.Error("a short tree passes")
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

func TestTable(t *testing.T) {
	root := [32]byte{0xab}
	got := verity.Table("7:0", "7:1", 300, 301, root, []byte{1, 2}, "panic_on_corruption")
	want := "1 7:0 7:1 4096 4096 300 301 sha256 ab" + fmt.Sprintf("%062d", 0) + " 0102 1 panic_on_corruption"
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := verity.Table("7:0", "7:0", 1, 1, root, nil); got[len(got)-2:] != " -" {
		t.Errorf("no salt and no option: %s", got)
	}
}

func BenchmarkBuild(b *testing.B) {
	content := data(200 << 20 / verity.BlockSize)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		build(b, content, make([]byte, 32))
	}
}
