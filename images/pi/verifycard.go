package pi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/blockmap"
	"portcullis/images/card"
	"portcullis/images/debroot"
)

// blockMap unpacks the card and compares it with its signed map.
func (v *verifier) blockMap(ctx context.Context) (string, error) {
	data, err := os.ReadFile(filepath.Join(v.Dir, BlockMapFile))
	if err != nil {
		return "", err
	}
	m, err := blockmap.Open(data, v.trust)
	if err != nil {
		return "", err
	}
	path := filepath.Join(v.Dir, CardFile)
	if d, err := debroot.DigestFile(path); err != nil {
		return "", err
	} else if d != m.Compressed.SHA256.String() {
		return "", refuse(debroot.Reason(blockmap.ReasonDiffers), "%s is not the file of the map", CardFile)
	}
	if v.card, err = unpackCard(ctx, path, filepath.Join(v.Scratch, "card"), m.Size); err != nil {
		return "", err
	}
	buf := make([]byte, blockmap.MaxRange)
	for _, r := range m.Ranges {
		if _, err := v.card.ReadAt(buf[:r.Length], r.Start); err != nil {
			return "", err
		}
		if sha256.Sum256(buf[:r.Length]) != r.SHA256 {
			return "", refuse(debroot.Reason(blockmap.ReasonDiffers), "%d bytes at %d are not those of the map", r.Length, r.Start)
		}
	}
	for _, g := range m.Gaps() {
		if _, err := v.card.ReadAt(buf[:g.Length], g.Start); err != nil {
			return "", err
		}
		if !blockmap.Zero(buf[:g.Length]) {
			return "", refuse(debroot.Reason(blockmap.ReasonDiffers), "%d bytes at %d are not zero", g.Length, g.Start)
		}
	}
	return m.Title, nil
}

// unpackCard unpacks exactly size bytes.
func unpackCard(ctx context.Context, from, to string, size int64) (*os.File, error) {
	in, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	d, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(blockmap.MaxRange))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	out, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(out, io.LimitReader(d, size+1))
	if err == nil && n != size {
		err = refuse(debroot.Reason(blockmap.ReasonDiffers), "the card has %d bytes or more, the map says %d", n, size)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// bootInfo reads what the initramfs says of itself.
func bootInfo(files map[string][]byte) (*card.Info, error) {
	if img, ok := files[card.BootImgFile]; ok {
		inner, err := volumeFiles(sliceReader(img), int64(len(img)))
		if err != nil {
			return nil, err
		}
		files = inner
	}
	text, err := debroot.ReadInitrd(files[card.InitramfsFile], card.InfoPath)
	if err != nil {
		return nil, err
	}
	return card.ParseInfo(text)
}

type sliceReader []byte

func (s sliceReader) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(b, s[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// looseFiles reads a directory of boot files by their names on the card.
func looseFiles(dir string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if st, err := e.Info(); err != nil || st.Size() > card.BootSize {
			return fmt.Errorf("%s: larger than a boot partition (%v)", name, err)
		}
		out[name], err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		return err
	})
	return out, err
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer, colour bool) {
	o := debroot.Outcome{OK: r.OK, Checks: r.Checks, Reason: r.Reason, Lab: r.LabChannel}
	if r.OwnTrust {
		o.Own = "whole, by the keys that came with it; --release-key says who made it"
	}
	o.Print(w, colour)
}
