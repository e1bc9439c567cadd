package protocol

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// A digest does not depend on those before it, and is the HMAC of what it names, each
// field with its length before it.
func TestMACsOneAfterTheOther(t *testing.T) {
	key := OpKey{1, 2, 3}
	field := func(b []byte, f string) []byte { return append(binary.BigEndian.AppendUint64(b, uint64(len(f))), f...) }
	plain := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, key[:])
		h.Write(bytes.Join(parts, nil))
		return h.Sum(nil)
	}
	u64 := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	piece := bytes.Repeat([]byte("x"), PageSize)
	m := key.MACs()
	for i := range uint64(3) {
		want := hex.EncodeToString(plain(field(nil, "pmem-page"), field(nil, string(u64(i))), field(nil, "/bin/a"), piece)[:16])
		if got := m.PageMAC("/bin/a", i, piece); got != want {
			t.Errorf("page %d: %s, want %s", i, got, want)
		}
		at := binary.BigEndian.Uint64(plain(field(nil, "pmem-pick"), field(nil, "seed"), field(nil, "/bin/a"), u64(0x1000), u64(0x9000), u64(i))) % 9
		if got := m.PickPage("seed", "/bin/a", Segment{Offset: 0x1000, Length: 0x9000}, int(i)); got != 0x1000+at*PageSize {
			t.Errorf("pick %d: %#x", i, got)
		}
		if got := m.KtextMAC(int(i), piece); !bytes.Equal(got[:], plain(field(nil, "ktext-piece"), field(nil, string(u64(i))), piece)[:KtextMACSize]) {
			t.Errorf("piece %d: %x", i, got)
		}
		leaf := m.LeafMAC(int(i), Leaf{"/bin/a", 5}, piece)
		if want := plain(field(nil, "files-leaf"), field(nil, "/bin/a"), u64(i), u64(5), piece)[:TreeMACSize]; !bytes.Equal(leaf, want) {
			t.Errorf("leaf %d: %x", i, leaf)
		}
		self := TreeEntry{Path: "/bin", Mode: uint32(i)}
		tree := m.TreeMAC("/bin", self, nil)
		if want := plain(field(nil, "files-directory"), field(nil, "/bin"), self.append(nil))[:TreeMACSize]; !bytes.Equal(tree, want) {
			t.Errorf("directory %d: %x", i, tree)
		}
		if m.KtextMAC(9, nil); !bytes.Equal(leaf, key.MACs().LeafMAC(int(i), Leaf{"/bin/a", 5}, piece)) {
			t.Error("a digest changes with the next one")
		}
		if got, want := key.NewDigest("op", []byte("{}")), plain(field(nil, "op"), field(nil, "{}")); !bytes.Equal(got.Sum(nil), want) {
			t.Error("an op's digest is another")
		}
	}
}

// What was read before, whole or not, does not show in what is read next.
func TestDecodeOp_OneAfterTheOther(t *testing.T) {
	large := []byte(`{"blocks":[1` + string(bytes.Repeat([]byte(",2"), 4000)) + `]}`)
	for i := range 200 {
		for _, b := range []string{`{"blocks":[7]`, `{"blocks":[7]} {"blocks":[8]}`, `{"blocks":[7]}x`, `{"other":1}`, `{"blocks":["a"]}`, `{`, `{}}`} {
			if err := DecodeOp([]byte(b), MaxData, &BlockParams{}); err == nil {
				t.Fatalf("round %d: %s was read", i, b)
			}
		}
		for _, b := range []string{`{"blocks":[7]}`, "{\"blocks\":\n[7]} \n\t", `{"blocks":[7]}  `} {
			if err := DecodeOp(large, MaxData, &BlockParams{}); i%2 == 0 && err == nil {
				t.Fatal("more blocks than are allowed were read")
			}
			var p BlockParams
			if err := DecodeOp([]byte(b), MaxData, &p); err != nil || len(p.Blocks) != 1 || p.Blocks[0] != 7 {
				t.Fatalf("round %d: %q: %v %v", i, b, p.Blocks, err)
			}
		}
	}
}
