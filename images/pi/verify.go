package pi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"

	"portcullis/hardware/tpmpolicy"
	"portcullis/images/blockmap"
	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/fat"
	"portcullis/images/gpt"
	"portcullis/images/manifest"
	"portcullis/images/verity"
)

// Reasons why a Pi image is not what it says, beside those of the packages blockmap, bundle and manifest.
const (
	ReasonCard   debroot.Reason = "card-differs"   // the card does not hold what the update of the same release holds
	ReasonBoot   debroot.Reason = "boot-differs"   // the boot files are not those that the manifest names
	ReasonPolicy debroot.Reason = "policy-differs" // the chip's policies are not for these boot files
	ReasonVerity debroot.Reason = "verity-differs" // the root image does not have the signed root hash
	ReasonRead   debroot.Reason = "image-unreadable"
)

// VerifyOptions of Verify.
type VerifyOptions struct {
	Dir string
	// Keys are the release keys that are trusted; none: those that the image itself
	// names, and then nothing is said about who made it.
	Keys []ed25519.PublicKey
	// Scratch is a directory with room for the unpacked card; "" = the system's.
	Scratch string
}

// Report is the outcome of Verify: checks in order up to the first that failed.
type Report struct {
	OK         bool            `json:"ok"`
	Dir        string          `json:"dir"`
	Model      string          `json:"model,omitempty"`
	Profile    string          `json:"profile,omitempty"`
	Sequence   uint64          `json:"sequence,omitempty"`
	LabChannel bool            `json:"lab_channel"`
	OwnTrust   bool            `json:"own_trust"` // the keys came with the image
	Checks     []debroot.Check `json:"checks"`
	Reason     string          `json:"reason,omitempty"` // of the first difference
	Detail     string          `json:"detail,omitempty"`
}

// IsImage tells whether dir holds an image of this package.
func IsImage(dir string) bool { return exists(filepath.Join(dir, SummaryFile)) }

type verifier struct {
	VerifyOptions
	trust manifest.Trust
	card  *os.File // unpacked
	boot  []byte   // the update's boot partition
	files map[string][]byte
	root  *os.File // the update's root image
	m     bundle.Manifest
	info  *card.Info
}

// Verify recomputes everything that an image directory says and stops at the
// first thing that differs.
func Verify(ctx context.Context, o VerifyOptions) *Report {
	r := &Report{Dir: o.Dir, OwnTrust: len(o.Keys) == 0}
	v := &verifier{VerifyOptions: o}
	scratch, err := os.MkdirTemp(o.Scratch, "portcullis-verify-")
	if err != nil {
		r.Reason, r.Detail = string(ReasonRead), err.Error()
		return r
	}
	defer os.RemoveAll(scratch)
	v.Scratch = scratch
	r.Checks, err = debroot.RunChecks(ctx, []debroot.Step{
		{Name: "keys", Run: v.keys}, {Name: "update, signature", Run: v.update}, {Name: "boot files", Run: v.bootFiles},
		{Name: "policies of the chip", Run: v.policies}, {Name: "verity tree", Run: v.verity}, {Name: "card, block map", Run: v.blockMap},
		{Name: "card holds the release", Run: v.cardHolds},
	}, func() {
		r.Model, r.Profile, r.Sequence, r.LabChannel = v.m.Model, v.m.Profile, v.m.Sequence, v.m.LabChannel
	})
	if err != nil {
		r.Reason, r.Detail = reasonOf(err), err.Error()
	}
	for _, f := range []*os.File{v.card, v.root} {
		if f != nil {
			f.Close()
		}
	}
	r.OK = r.Reason == ""
	return r
}

func reasonOf(err error) string {
	var ours *Error
	var update *bundle.Error
	var image *blockmap.Error
	var signed *manifest.Error
	switch {
	case errors.As(err, &ours):
		return string(ours.Reason)
	case errors.As(err, &update):
		return update.Reason
	case errors.As(err, &image):
		return image.Reason
	case errors.As(err, &signed):
		return signed.Reason
	}
	return string(ReasonRead)
}

// keys takes the image's own where the caller named none.
func (v *verifier) keys(context.Context) (string, error) {
	if len(v.Keys) == 0 {
		files, err := looseFiles(filepath.Join(v.Dir, BootDir))
		if err != nil {
			return "", err
		}
		if v.info, err = bootInfo(files); err != nil {
			return "", err
		}
		for _, k := range v.info.ReleaseKeys {
			v.Keys = append(v.Keys, ed25519.PublicKey(k))
		}
	}
	v.trust = manifest.Trust{Threshold: 1, ReleaseKeys: v.Keys}
	return manifest.KeyID(v.Keys[0]), nil
}

// update unpacks the update into v, each piece checked.
func (v *verifier) update(context.Context) (string, error) {
	f, err := os.Open(filepath.Join(v.Dir, BundleFile))
	if err != nil {
		return "", err
	}
	defer f.Close()
	u, err := bundle.Open(f, v.trust)
	if err != nil {
		return "", err
	}
	v.m = u.Manifest
	v.boot = make([]byte, card.BootSize)
	if err := u.Copy(bundle.Boot, func(offset int64, piece []byte) error { copy(v.boot[offset:], piece); return nil }); err != nil {
		return "", err
	}
	if v.root, err = os.Create(filepath.Join(v.Scratch, bundle.Root)); err != nil {
		return "", err
	}
	if err := u.Copy(bundle.Root, func(offset int64, piece []byte) error { _, err := v.root.WriteAt(piece, offset); return err }); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %s, release %d", v.m.Model, v.m.Profile, v.m.Sequence), u.Close()
}

func (v *verifier) bootFiles(context.Context) (string, error) {
	var err error
	if v.files, err = volumeFiles(bytes.NewReader(v.boot), int64(len(v.boot))); err != nil {
		return "", err
	}
	digest := card.BootDigest(v.files)
	if hex.EncodeToString(digest[:]) != v.m.BootDigest {
		return "", refuse(ReasonBoot, "the boot files have the digest %x, the manifest says %s", digest, v.m.BootDigest)
	}
	loose, err := looseFiles(filepath.Join(v.Dir, BootDir))
	if err != nil {
		return "", err
	}
	if !reflect.DeepEqual(loose, v.files) {
		return "", refuse(ReasonBoot, "the files in %s are not those of the update", BootDir)
	}
	if v.info, err = bootInfo(v.files); err != nil {
		return "", err
	}
	if v.info.Model != v.m.Model || v.info.Profile != v.m.Profile || v.info.Sequence != v.m.Sequence || v.info.LabChannel != v.m.LabChannel {
		return "", refuse(ReasonBoot, "the initramfs says it is of another release than the manifest")
	}
	return fmt.Sprintf("%d files", len(v.files)), nil
}

// policies computes the registers anew from the boot files.
func (v *verifier) policies(context.Context) (string, error) {
	text := v.files[card.PolicyFile]
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != v.m.Policy {
		return "", refuse(ReasonPolicy, "%s is not the one of the manifest", card.PolicyFile)
	}
	f, err := tpmpolicy.Parse(text)
	if err != nil {
		return "", &Error{Reason: ReasonPolicy, Msg: "policies", Err: err}
	}
	key, err := v.info.Policy()
	if err != nil {
		return "", &Error{Reason: ReasonPolicy, Msg: "policy key", Err: err}
	}
	want := map[tpmpolicy.Platform]map[int][32]byte{
		tpmpolicy.PlatformSelf: tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(card.MeasuredDigest(v.files), v.m.Cmdline)...),
	}
	if image, ok := v.files[card.UKIFile]; ok {
		if want[tpmpolicy.PlatformEFI], err = efiRegisters(image); err != nil {
			return "", &Error{Reason: ReasonPolicy, Msg: "registers", Err: err}
		}
	}
	for _, b := range f.Branches {
		if err := b.Verify(key); err != nil {
			return "", &Error{Reason: ReasonPolicy, Msg: "signature", Err: err}
		}
		if !maps.Equal(b.PCRs, want[b.Platform]) || b.Sequence != v.m.Sequence || b.NVIndex != v.info.NVIndex {
			return "", refuse(ReasonPolicy, "the policy for platform %s is not for these boot files", b.Platform)
		}
		delete(want, b.Platform)
	}
	if len(want) != 0 {
		return "", refuse(ReasonPolicy, "a platform has no policy")
	}
	return fmt.Sprintf("%d signed", len(f.Branches)), nil
}

func (v *verifier) verity(context.Context) (string, error) {
	salt, err := hex.DecodeString(v.m.Verity.Salt)
	if err != nil {
		return "", refuse(ReasonVerity, "the salt is not hex")
	}
	size := int64(v.m.Verity.DataBlocks) * verity.BlockSize
	tree, err := verity.Build(v.root, size, salt)
	if err != nil {
		return "", &Error{Reason: ReasonVerity, Msg: "tree", Err: err}
	}
	have := make([]byte, len(tree.Hashes))
	if _, err := v.root.ReadAt(have, int64(v.m.Verity.HashStart)*verity.BlockSize); err != nil || !bytes.Equal(have, tree.Hashes) || tree.Root() != v.m.Verity.RootHash {
		return "", refuse(ReasonVerity, "the root image has the root hash %s, the manifest says %s", tree.Root(), v.m.Verity.RootHash)
	}
	return tree.Root(), nil
}

// cardHolds compares the card's partitions with the update's.
func (v *verifier) cardHolds(context.Context) (string, error) {
	st, err := v.card.Stat()
	if err != nil {
		return "", err
	}
	table, health, err := gpt.Read(v.card, uint64(st.Size()/card.SectorSize))
	if err != nil || !health.OK() {
		return "", &Error{Reason: ReasonCard, Msg: "partition table " + health.String(), Err: err}
	}
	for _, c := range []struct {
		name string
		with io.ReaderAt
		size int64
	}{{card.LabelBootA, bytes.NewReader(v.boot), card.BootSize}, {card.LabelSeed, v.root, v.m.Artefact(bundle.Root).Size}} {
		p, err := table.ByName(c.name)
		if err != nil {
			return "", &Error{Reason: ReasonCard, Msg: "partition", Err: err}
		}
		if err := sameBytes(io.NewSectionReader(v.card, p.Offset(), c.size), io.NewSectionReader(c.with, 0, c.size)); err != nil {
			return "", refuse(ReasonCard, "partition %s: %v", c.name, err)
		}
	}
	return "", v.confHolds(table)
}

func (v *verifier) confHolds(table *gpt.Table) error {
	p, err := table.ByName(card.LabelConf)
	if err != nil {
		return &Error{Reason: ReasonCard, Msg: "partition", Err: err}
	}
	want, err := card.ConfFiles(v.m.Release())
	if err != nil {
		return err
	}
	have, err := volumeFiles(io.NewSectionReader(v.card, p.Offset(), p.Size()), p.Size())
	if err != nil {
		return &Error{Reason: ReasonCard, Msg: card.LabelConf, Err: err}
	}
	if have[card.ZymbitFile] == nil {
		delete(want, card.ZymbitFile) // an image of a release that had no place for it
	}
	if !reflect.DeepEqual(have, want) {
		return refuse(ReasonCard, "%s is not that of a fresh card of this release", card.LabelConf)
	}
	return nil
}

func sameBytes(a, b io.Reader) error {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := io.ReadFull(a, x)
		if k, _ := io.ReadFull(b, y); k != n || !bytes.Equal(x[:n], y[:n]) {
			return fmt.Errorf("differs from the update within 1 MiB of byte %d", at)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
		at += int64(n)
	}
}

// volumeFiles reads all files of a FAT volume.
func volumeFiles(r io.ReaderAt, size int64) (map[string][]byte, error) {
	volume, err := fat.Open(r, size)
	if err != nil {
		return nil, err
	}
	list, err := volume.List()
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, e := range list {
		if e.Dir {
			continue
		}
		if out[e.Path], err = volume.ReadFile(e.Path, card.BootSize); err != nil {
			return nil, err
		}
	}
	return out, nil
}
