package luks2

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	luks "github.com/anatol/luks.go"
)

func token(kind string, slot int, data string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"type":%q,"keyslots":["%d"],"data":%q}`, kind, slot, data))
}

// dumpKey is the volume key as cryptsetup finds it.
func dumpKey(t testing.TB, path string, pass []byte) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	cryptsetup(t, pass, "luksDump", "-q", "--dump-volume-key", "--volume-key-file", file, "--key-file", "-", path)
	return must[[]byte](t)(os.ReadFile(file))
}

// Both programs that will meet the volume open every slot of it and find the same
// key.
func TestOthersOpenWhatWeWrite(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			f, size, h, key := onFile(t, Options{SectorSize: sector, Label: "portcullis"}, 1<<20)
			recovery := must[*RecoveryKey](t)(NewRecoveryKey(nil))
			chip := must[int](t)(h.AddSlot(f, key, chipPass, ForChip()))
			human := must[int](t)(h.AddSlot(f, key, recovery.Passphrase(), ForPeople()))
			mine := token("portcullis-root", chip, `</&> é`)
			must[int](t)(h.SetToken(-1, mine))
			must[int](t)(h.SetToken(-1, json.RawMessage(fmt.Sprintf(`{"type":"systemd-recovery","keyslots":["%d"]}`, human))))
			check(t, h.Write(f))

			opens(t, f.Name(), chipPass, "--key-slot", fmt.Sprint(chip))
			opens(t, f.Name(), recovery.Passphrase(), "--key-slot", fmt.Sprint(human))
			if _, err := tryCryptsetup(t, []byte("wrong"), "open", "--test-passphrase", "--key-file", "-", f.Name()); err == nil {
				t.Error("cryptsetup opens it with anything")
			}
			if got := dumpKey(t, f.Name(), chipPass); !bytes.Equal(got, key) {
				t.Error("cryptsetup finds another volume key")
			}
			if got := strings.TrimSpace(cryptsetup(t, nil, "luksUUID", f.Name())); got != h.UUID() {
				t.Errorf("UUID %q, not %q", got, h.UUID())
			}
			var theirs, ours any
			check(t, json.Unmarshal([]byte(cryptsetup(t, nil, "luksDump", "--dump-json-metadata", f.Name())), &theirs))
			check(t, json.Unmarshal(h.JSON(), &ours))
			if a, b := fmt.Sprint(theirs), fmt.Sprint(ours); a != b {
				t.Errorf("cryptsetup reads\n%s\nand we wrote\n%s", a, b)
			}
			if got := cryptsetup(t, nil, "token", "export", "--token-id", "0", f.Name()); !sameJSON(t, got, string(mine)) {
				t.Errorf("token %s", got)
			}
			bothGood(t, f.Name())
			luksGoOpens(t, f.Name(), chip, chipPass, key, size)
			luksGoOpens(t, f.Name(), human, recovery.Passphrase(), key, size)
		})
	}
}

// bothGood is cryptsetup's word that it has nothing to recover.
func bothGood(t testing.TB, path string) {
	t.Helper()
	out := cryptsetup(t, nil, "luksDump", "--debug", path)
	if strings.Contains(out, "requires recovery") || strings.Count(out, "(in-memory)") != 2 {
		t.Errorf("cryptsetup does not find two good headers:\n%s", out)
	}
}

func sameJSON(t testing.TB, a, b string) bool {
	t.Helper()
	var x, y any
	check(t, json.Unmarshal([]byte(a), &x))
	check(t, json.Unmarshal([]byte(b), &y))
	return fmt.Sprint(x) == fmt.Sprint(y)
}

func luksGoOpens(t testing.TB, path string, slot int, pass, key []byte, size int64) {
	t.Helper()
	dev, err := luks.Open(path)
	check(t, err)
	defer dev.Close()
	v, err := dev.UnsealVolume(slot, pass)
	check(t, err)
	got, err := v.HMAC(crypto.SHA256, []byte("which key"))
	check(t, err)
	m := hmac.New(sha256.New, key)
	m.Write([]byte("which key"))
	if !bytes.Equal(got, m.Sum(nil)) {
		t.Error("luks.go finds another volume key")
	}
	if v.StorageOffset+v.StorageSize != uint64(size) {
		t.Errorf("luks.go sees a payload of %d bytes at %d on a device of %d", v.StorageSize, v.StorageOffset, size)
	}
}

func TestWeOpenWhatCryptsetupWrites(t *testing.T) {
	pass := []byte("what a human types")
	for name, args := range map[string][]string{
		"pbkdf2":        {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"},
		"argon2id":      {"--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768"},
		"argon2i":       {"--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768", "--pbkdf-parallel", "2"},
		"sha512":        {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha512"},
		"sector 512":    {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "512"},
		"sector 4096":   {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "4096"},
		"AES-128":       {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-size", "256"},
		"large headers": {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-metadata-size", "64k", "--luks2-keyslots-size", "1m"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "volume")
			const size = 20 << 20
			check(t, os.WriteFile(path, nil, 0o600))
			check(t, os.Truncate(path, size))
			cryptsetup(t, pass, append([]string{"luksFormat", "-q", "--type", "luks2", "--key-file", "-", path}, args...)...)
			f := must[*os.File](t)(os.OpenFile(path, os.O_RDWR, 0))
			defer f.Close()
			h, health, err := Read(f, size)
			check(t, err)
			if !health.Good() {
				t.Errorf("health %+v", health)
			}
			key, slot, err := h.Unlock(f, pass)
			check(t, err)
			if slot != 0 || !bytes.Equal(key, dumpKey(t, path, pass)) {
				t.Error("another key than cryptsetup finds")
			}
			if _, _, err := h.Unlock(f, []byte("What a human types")); ReasonOf(err) != ReasonPassphrase {
				t.Errorf("wrong passphrase: %v", err)
			}
			// We add a slot to its volume, and take its own away.
			if len(key) == VolumeKeySize || name == "AES-128" {
				added := must[int](t)(h.AddSlot(f, key, chipPass, ForChip()))
				check(t, h.Write(f))
				opens(t, path, chipPass)
				check(t, h.KillSlot(f, slot))
				check(t, h.Write(f))
				opens(t, path, chipPass, "--key-slot", fmt.Sprint(added))
				if _, err := tryCryptsetup(t, pass, "open", "--test-passphrase", "--key-file", "-", path); err == nil {
					t.Error("the killed slot still opens")
				}
			}
		})
	}
}

// cryptsetup adds slots and tokens to our volume; what it wrote survives our own
// changes byte for byte.
func TestCryptsetupChangesOurVolume(t *testing.T) {
	f, size, h, key := onFile(t, Options{}, 1<<20)
	must[int](t)(h.AddSlot(f, key, chipPass, ForChip()))
	check(t, h.Write(f))
	dir := t.TempDir()
	old, added := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	check(t, os.WriteFile(old, chipPass, 0o600))
	check(t, os.WriteFile(added, []byte("another"), 0o600))
	cryptsetup(t, nil, "luksAddKey", "-q", "--key-file", old, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", f.Name(), added)
	strange := `{"type":"someone-elses","keyslots":["1"],"z":[1,2.50,{"deep":null}],"a":"\u00e9</>&","big":123456789012345678}`
	cryptsetup(t, []byte(strange), "token", "import", "--token-id", "7", "--json-file", "-", f.Name())

	if err := h.Write(f); ReasonOf(err) != ReasonStale {
		t.Fatalf("a header from before cryptsetup's changes: %v", err)
	}
	h, _, err := Read(f, size)
	check(t, err)
	before := h.Tokens()
	if len(before) != 1 || before[0].ID != 7 || before[0].Type != "someone-elses" {
		t.Fatalf("%+v", before)
	}
	must[int](t)(h.SetToken(-1, token("test", 0, "x")))
	check(t, h.Write(f))
	h, _, err = Read(f, size)
	check(t, err)
	if after := h.Tokens(); len(after) != 2 || !bytes.Equal(after[1].JSON, before[0].JSON) {
		t.Errorf("the token was\n%s\nand is\n%s", before[0].JSON, after[1].JSON)
	}
	_, slot, err := h.Unlock(f, []byte("another"))
	if err != nil || slot != 1 {
		t.Errorf("slot %d, %v", slot, err)
	}
	// Without the slot, its token has nothing to open.
	check(t, h.KillSlot(f, 1))
	check(t, h.Write(f))
	if out := cryptsetup(t, nil, "luksDump", f.Name()); strings.Contains(out, "someone-elses") {
		t.Error(out)
	}
	opens(t, f.Name(), chipPass)
}

// The payload: what cryptsetup encrypted in place we read, and what we wrote it
// decrypts in place.
func TestPayloadIsThatOfCryptsetup(t *testing.T) {
	plain := make([]byte, 2<<20)
	must[int](t)(rand.Read(plain))
	pass := []byte("pass")
	for _, sector := range []string{"512", "4096"} {
		t.Run("they encrypt, sector "+sector, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "volume")
			check(t, os.WriteFile(path, append(bytes.Clone(plain), make([]byte, 32<<20)...), 0o600))
			cryptsetup(t, pass, "reencrypt", "-q", "--encrypt", "--type", "luks2", "--reduce-device-size", "32M", "--sector-size", sector,
				"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", path)
			f := must[*os.File](t)(os.Open(path))
			defer f.Close()
			h, _, err := Read(f, int64(len(plain)+32<<20))
			check(t, err)
			key, _, err := h.Unlock(f, pass)
			check(t, err)
			p := must[*Payload](t)(h.Payload(f, key))
			got := make([]byte, len(plain))
			must[int](t)(p.ReadAt(got, 0))
			if !bytes.Equal(got, plain) {
				t.Error("we read other bytes than were encrypted")
			}
		})
		t.Run("they decrypt, sector "+sector, func(t *testing.T) {
			n := 4096
			if sector == "512" {
				n = 512
			}
			f, _, h, key := onFile(t, Options{SectorSize: n}, int64(len(plain)))
			must[int](t)(h.AddSlot(f, key, pass, ForChip()))
			check(t, h.Write(f))
			p := must[*Payload](t)(h.Payload(f, key))
			must[int](t)(p.WriteAt(plain, 0))
			check(t, f.Sync())
			cryptsetup(t, pass, "reencrypt", "-q", "--decrypt", "--force-offline-reencrypt", "--header", filepath.Join(t.TempDir(), "header"), "--key-file", "-", f.Name())
			got := make([]byte, len(plain))
			must[int](t)(f.ReadAt(got, 0))
			if !bytes.Equal(got, plain) {
				t.Error("cryptsetup decrypts to other bytes than we wrote")
			}
		})
	}
}

// luks.go opens such a volume without a question, and a write to it would destroy
// data.
func TestUnfinishedEncryptionIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "volume")
	check(t, os.WriteFile(path, make([]byte, 40<<20), 0o600))
	cryptsetup(t, []byte("pass"), "reencrypt", "-q", "--encrypt", "--init-only", "--type", "luks2", "--reduce-device-size", "32M",
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", path)
	f := must[*os.File](t)(os.OpenFile(path, os.O_RDWR, 0))
	defer f.Close()
	if _, _, err := Read(f, 40<<20); ReasonOf(err) != ReasonUnfinished {
		t.Errorf("Read: %v", err)
	}
	// Not even its damaged primary header is touched.
	_, err := f.WriteAt(make([]byte, 4096), 0)
	check(t, err)
	if _, _, err := Repair(f, 40<<20); ReasonOf(err) != ReasonUnfinished {
		t.Errorf("Repair: %v", err)
	}
	first := make([]byte, 4096)
	must[int](t)(f.ReadAt(first, 0))
	if !bytes.Equal(first, make([]byte, 4096)) {
		t.Error("Repair wrote")
	}
}

func TestPrimaryHeaderDestroyedIsRepaired(t *testing.T) {
	pass := []byte("pass")
	for name, args := range map[string][]string{
		"16 KiB":  {},
		"64 KiB":  {"--luks2-metadata-size", "64k", "--luks2-keyslots-size", "1m"},
		"4 MiB":   {"--luks2-metadata-size", "4m", "--luks2-keyslots-size", "1m"},
		"128 KiB": {"--luks2-metadata-size", "128k", "--luks2-keyslots-size", "1m"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "volume")
			const size = 20 << 20
			check(t, os.WriteFile(path, nil, 0o600))
			check(t, os.Truncate(path, size))
			cryptsetup(t, pass, append([]string{"luksFormat", "-q", "--type", "luks2", "--key-file", "-", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", path}, args...)...)
			whole := must[[]byte](t)(os.ReadFile(path))
			f := must[*os.File](t)(os.OpenFile(path, os.O_RDWR, 0))
			defer f.Close()
			_, err := f.WriteAt(make([]byte, 16<<10), 0)
			check(t, err)
			if _, err := luks.Open(path); err == nil {
				t.Fatal("luks.go opens it: the test destroys nothing")
			}
			_, health, err := Repair(f, size)
			check(t, err)
			if health.Primary != CopyMissing || health.Secondary != CopyGood {
				t.Errorf("health %+v", health)
			}
			bothGood(t, path)
			opens(t, path, pass)
			luksGoOpens(t, path, 0, pass, dumpKey(t, path, pass), size)
			h, health, err := Read(f, size)
			if err != nil || !health.Good() || !bytes.Equal(h.JSON(), bytes.TrimRight(whole[binarySize:16<<10], "\x00")) && name == "16 KiB" {
				t.Errorf("%v, %+v", err, health)
			}
			// And the same with the secondary one.
			_, err = f.WriteAt(make([]byte, 512), int64(h.bin.Size))
			check(t, err)
			_, health, err = Repair(f, size)
			if err != nil || health.Secondary != CopyMissing {
				t.Errorf("%v, %+v", err, health)
			}
			_, err = f.WriteAt(make([]byte, 512), 0)
			check(t, err)
			opens(t, path, pass) // from the secondary one alone
		})
	}
}
