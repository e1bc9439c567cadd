package piscenario

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis/hardware/escrow"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/lab/pi"
)

// variant is the image that most tests boot.
var variant = pi.Variant{}

func header(t *testing.T, c pi.Card) (*luks2.Header, luks2.Health, *io.SectionReader) {
	t.Helper()
	s := section(t, c, card.PartCrypt)
	h, health, err := luks2.Read(s, s.Size())
	if err != nil {
		t.Fatal(err)
	}
	return h, health, s
}

func health(t *testing.T, c pi.Card) luks2.Health {
	t.Helper()
	_, health, _ := header(t, c)
	return health
}

// TestVolumeKeyStaysInside: the key of the volume, which the test can get at with the
// recovery key, stands nowhere on the card, in the chip's state, on the console or in
// the running system's logs; and the operator alone gets the recovery key out of the escrow.
func TestVolumeKeyStaysInside(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	m, c, console := goesOn(t)
	h, _, s := header(t, c)
	key, _, err := h.Unlock(s, []byte(p.Recovery))
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{
		"volume key": key[:32], "volume key's second half": key[32:],
		"volume key in hex": []byte(hex.EncodeToString(key[:16])), "second half in hex": []byte(hex.EncodeToString(key[32:48])),
		"volume key in base64": []byte(base64.StdEncoding.EncodeToString(key)[:32]),
	}
	said(t, console, `portcullis: stage=switch-root`)
	logs := output(t, m, "/bin/sh", "-c", "journalctl -a --no-pager; dmesg; cat /run/portcullis/pi.json; cat /proc/cmdline; env")
	powerOff(t, m)
	for what, text := range map[string]string{"the first boot's console": p.Console, "the console": console + m.Console().Text(), "the logs": logs} {
		find(t, what, []byte(text), secrets)
	}
	find(t, "the logs", []byte(logs), map[string][]byte{"recovery key": []byte(p.Recovery)})
	secrets["recovery key"] = []byte(p.Recovery)
	scan(t, c.Image, secrets)
	err = filepath.WalkDir(c.TPM, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			scan(t, path, secrets)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	file, err := c.Conf(card.EscrowFile)
	if err != nil {
		t.Fatal(err)
	}
	path, _, err := builder.Operator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, err := escrow.LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := escrow.Decrypt(id, bytes.TrimSpace(file))
	if err != nil || string(rec.Key.Passphrase()) != p.Recovery || rec.Volume != h.UUID() {
		t.Errorf("escrow of volume %v: %v", rec, err)
	}
}

func find(t *testing.T, where string, text []byte, secrets map[string][]byte) {
	t.Helper()
	for name, s := range secrets {
		if i := bytes.Index(text, s); i >= 0 {
			t.Errorf("%s holds the %s at byte %d", where, name, i)
		}
	}
}

// scan looks through the data of a sparse file, over the edges of what it reads.
func scan(t *testing.T, path string, secrets map[string][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const overlap = 128
	buf := make([]byte, 8<<20)
	for at := int64(0); ; {
		at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		n, err := f.ReadAt(buf, at)
		find(t, path, buf[:n], secrets)
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		at += int64(n - overlap)
	}
}
