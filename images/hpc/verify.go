package hpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/ktextmask"
	"portcullis/images/manifest"
	"portcullis/images/pcr"
	"portcullis/images/uki"
	"portcullis/images/verity"
)

// Reasons why an image is not what its manifest says, beside those of package manifest.
const (
	ReasonVerity  Reason = "verity-differs"  // root.img does not have the signed root hash
	ReasonUKI     Reason = "uki-differs"     // the UKI is not made of the other artefacts
	ReasonCmdline Reason = "cmdline-differs" // the command line does not name the verity root
	ReasonPCR     Reason = "pcr-differs"     // other register values would be measured
	ReasonTrust   Reason = "trust-differs"   // the initrd trusts somebody else
	ReasonRead    Reason = "image-unreadable"
)

// VerifyOptions of Verify.
type VerifyOptions struct {
	Dir       string
	TrustFile string // "" = the one in Dir: then nothing is said about who made the image
	Now       time.Time
	Floor     uint64 // lowest version accepted
}

// Report is the outcome of Verify: checks in order up to the first that failed.
type Report struct {
	OK         bool            `json:"ok"`
	Dir        string          `json:"dir"`
	Image      string          `json:"image,omitempty"`
	Version    uint64          `json:"version,omitempty"`
	Profile    string          `json:"profile,omitempty"`
	LabChannel bool            `json:"lab_channel"`
	Digest     string          `json:"manifest_sha256,omitempty"`
	OwnTrust   bool            `json:"own_trust"` // the trust file came with the image
	Checks     []debroot.Check `json:"checks"`
	Reason     string          `json:"reason,omitempty"` // of the first difference
	Detail     string          `json:"detail,omitempty"`
}

type verifier struct {
	VerifyOptions
	open      *manifest.Trust // instead of the trust file, for the signatures
	trust     manifest.Trust  // what the initrd has to trust
	m         *manifest.Verified
	artefacts map[string][]byte // but root.img
}

// Verify recomputes everything that the manifest of an image directory says
// and stops at the first thing that differs.
func Verify(ctx context.Context, o VerifyOptions) *Report {
	return verifyWith(ctx, o, nil, manifest.Trust{})
}

// verifyWith verifies the signatures against open where it is given, and
// compares the initrd's trust file with inside.
func verifyWith(ctx context.Context, o VerifyOptions, open *manifest.Trust, inside manifest.Trust) *Report {
	v := &verifier{VerifyOptions: o, open: open, trust: inside, artefacts: map[string][]byte{}}
	r := &Report{Dir: o.Dir, OwnTrust: o.TrustFile == ""}
	var err error
	r.Checks, err = debroot.RunChecks(ctx, []debroot.Step{
		{Name: "signature, dates, version", Run: v.manifest},
		{Name: "artefacts", Run: v.artefactsMatch},
		{Name: "verity tree", Run: v.verityMatches},
		{Name: "command line", Run: v.cmdlineMatches},
		{Name: "UKI sections", Run: v.ukiMatches},
		{Name: "PCR 9, 11, 12", Run: v.pcrMatches},
		{Name: "trust in the initrd", Run: v.trustMatches},
		{Name: "agent, mask, lab channel", Run: v.rootMatches},
	}, func() {
		if v.m != nil && r.Image == "" {
			r.Image, r.Version, r.Profile, r.LabChannel, r.Digest = v.m.Image, v.m.Version, v.m.Profile, v.m.LabChannel, v.m.Fingerprint()
		}
	})
	if err != nil {
		r.Reason, r.Detail = reasonOf(err), err.Error()
	}
	r.OK = err == nil
	return r
}

func reasonOf(err error) string {
	var ours *Error
	var theirs *manifest.Error
	switch {
	case errors.As(err, &ours):
		return string(ours.Reason)
	case errors.As(err, &theirs):
		return theirs.Reason
	}
	return string(ReasonRead)
}

func (v *verifier) read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(v.Dir, name))
}

func (v *verifier) manifest(context.Context) (string, error) {
	if err := v.readTrust(); err != nil {
		return "", err
	}
	envelope, err := v.read(manifest.Envelope)
	if err != nil {
		return "", err
	}
	if v.m, err = manifest.Open(envelope, *v.open, v.Now, v.Floor); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s version %d, valid until %s", v.m.Image, v.m.Version, v.m.NotAfter.Format("2006-01-02")), nil
}

func (v *verifier) readTrust() error {
	if v.open != nil {
		return nil
	}
	file := v.TrustFile
	if file == "" {
		file = filepath.Join(v.Dir, TrustFile)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("trust file: %w", err)
	}
	if v.trust, err = manifest.ParseTrust(data); err != nil {
		return err
	}
	v.open = &v.trust
	return nil
}

func (v *verifier) artefactsMatch(context.Context) (string, error) {
	var total int64
	for _, a := range v.m.Artefacts {
		f, err := os.Open(filepath.Join(v.Dir, a.Name))
		if err != nil {
			return "", err
		}
		var keep bytes.Buffer
		var r io.Reader = f
		if a.Name != manifest.Root {
			r = io.TeeReader(f, &keep)
		}
		err = manifest.CheckArtefact(a, r)
		f.Close()
		if err != nil {
			return "", err
		}
		v.artefacts[a.Name] = keep.Bytes()
		total += a.Size
	}
	return fmt.Sprintf("%d artefacts, %.1f MB", len(v.m.Artefacts), float64(total)/1e6), nil
}

func (v *verifier) verityMatches(context.Context) (string, error) {
	f, err := os.Open(filepath.Join(v.Dir, manifest.Root))
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	salt, err := hex.DecodeString(v.m.Verity.Salt)
	if err != nil {
		return "", err
	}
	data := int64(v.m.Verity.DataBlocks) * verity.BlockSize
	start := int64(v.m.Verity.HashStart) * verity.BlockSize
	if data <= 0 || start < data || start >= st.Size() {
		return "", refuse(ReasonVerity, "%s has %d bytes, its tree should begin at %d", manifest.Root, st.Size(), start)
	}
	tree, err := verity.Build(io.NewSectionReader(f, 0, data), data, salt)
	if err != nil {
		return "", err
	}
	if tree.Root() != v.m.Verity.RootHash {
		return "", refuse(ReasonVerity, "%s has root hash %s, the manifest says %s", manifest.Root, tree.Root(), v.m.Verity.RootHash)
	}
	stored := make([]byte, st.Size()-start)
	if _, err := f.ReadAt(stored, start); err != nil {
		return "", err
	}
	if i := firstDifference(stored, tree.Hashes); i >= 0 {
		return "", refuse(ReasonVerity, "the hash tree in %s differs from byte %d on", manifest.Root, start+int64(i))
	}
	return fmt.Sprintf("%d blocks, root %s", v.m.Verity.DataBlocks, short(tree.Root())), nil
}

func (v *verifier) cmdlineMatches(context.Context) (string, error) {
	want := verityWords(v.m.Verity)
	words := strings.Fields(v.m.Cmdline)
	for _, w := range want {
		key, _, _ := strings.Cut(w, "=")
		n := 0
		for _, have := range words {
			if k, _, _ := strings.Cut(have, "="); k == key {
				n++
			}
		}
		if n != 1 || !slices.Contains(words, w) {
			return "", refuse(ReasonCmdline, "the command line does not have %s exactly once", w)
		}
	}
	return v.m.Cmdline, nil
}

func (v *verifier) ukiMatches(context.Context) (string, error) {
	image := v.artefacts[manifest.UKI]
	f, err := uki.Parse(image)
	if err != nil {
		return "", &Error{Reason: ReasonUKI, Msg: "the UKI cannot be read", Err: err}
	}
	for _, s := range []struct {
		section string
		want    []byte
		what    string
	}{
		{uki.Linux, v.artefacts[manifest.Kernel], manifest.Kernel},
		{uki.Initrd, v.artefacts[manifest.Initrd], manifest.Initrd},
		{uki.Cmdline, []byte(v.m.Cmdline), "the manifest's command line"},
		{uki.Uname, []byte(v.m.UKI.KernelVersion), "the manifest's kernel version"},
	} {
		have, ok := f.Section(s.section)
		if !ok {
			return "", refuse(ReasonUKI, "the UKI has no section %s", s.section)
		}
		if i := firstDifference(have, s.want); i >= 0 {
			return "", refuse(ReasonUKI, "section %s of the UKI differs from %s at byte %d", s.section, s.what, i)
		}
	}
	have, err := uki.Describe(image)
	if err != nil {
		return "", &Error{Reason: ReasonUKI, Msg: "the UKI cannot be described", Err: err}
	}
	if fmt.Sprint(have) != fmt.Sprint(v.m.UKI) {
		return "", refuse(ReasonUKI, "the UKI is %+v, the manifest says %+v", have, v.m.UKI)
	}
	return fmt.Sprintf("stub %s, kernel %s, Authenticode %s", have.StubVersion, have.KernelVersion, short(have.Authenticode)), nil
}

func (v *verifier) pcrMatches(context.Context) (string, error) {
	p, err := pcr.Predict(v.artefacts[manifest.UKI])
	if err != nil {
		return "", &Error{Reason: ReasonPCR, Msg: "no prediction", Err: err}
	}
	have := p.Map()
	for _, n := range slices.Sorted(maps.Keys(have)) {
		if v.m.PCR[n] != have[n] {
			return "", refuse(ReasonPCR, "PCR %s would be %s, the manifest says %s", n, have[n], v.m.PCR[n])
		}
	}
	return "11=" + short(have["11"]), nil
}

func (v *verifier) trustMatches(context.Context) (string, error) {
	data, err := debroot.ReadInitrd(v.artefacts[manifest.Initrd], initrdTrust)
	if err != nil {
		return "", &Error{Reason: ReasonTrust, Msg: "the initrd's trust file cannot be read", Err: err}
	}
	inside, err := manifest.ParseTrust(data)
	if err != nil {
		return "", &Error{Reason: ReasonTrust, Msg: "the initrd's trust file", Err: err}
	}
	a, err := inside.Encode()
	if err != nil {
		return "", err
	}
	b, err := v.trust.Encode()
	if err != nil {
		return "", err
	}
	if !bytes.Equal(a, b) {
		return "", refuse(ReasonTrust, "the initrd trusts %s, the trust file is %s", bytes.TrimSpace(a), bytes.TrimSpace(b))
	}
	return fmt.Sprintf("%d of %d release keys, gateway %s", inside.Threshold, len(inside.ReleaseKeys), manifest.KeyID(inside.GatewayKey)), nil
}

func (v *verifier) rootMatches(ctx context.Context) (string, error) {
	img := filepath.Join(v.Dir, manifest.Root)
	agent, err := debroot.ReadSquash(ctx, img, AgentPath)
	if err != nil {
		return "", err
	}
	if d := hexDigest(agent); d != v.m.Agent {
		return "", refuse(debroot.ReasonRoot, "%s has digest %s, the manifest says %s", AgentPath, d, v.m.Agent)
	}
	stored, err := debroot.ReadSquash(ctx, img, MaskPath)
	if err != nil {
		return "", err
	}
	mask, err := ktextmask.Build(v.artefacts[manifest.Kernel])
	if err != nil {
		return "", &Error{Reason: debroot.ReasonRoot, Msg: "mask of kernel text", Err: err}
	}
	made, err := mask.Encode()
	if err != nil {
		return "", err
	}
	if i := firstDifference(stored, made); i >= 0 {
		return "", refuse(debroot.ReasonRoot, "%s differs at byte %d from the mask of this kernel", MaskPath, i)
	}
	if s := mask.Summary(made); s != v.m.Mask {
		return "", refuse(debroot.ReasonRoot, "the mask leaves out %+v, the manifest says %+v", s, v.m.Mask)
	}
	lab, err := debroot.HasSquash(ctx, img, debroot.LabPath)
	if err != nil {
		return "", err
	}
	if lab != v.m.LabChannel {
		return "", refuse(debroot.ReasonLabInReal, "lab channel in the root image: %t, in the manifest: %t", lab, v.m.LabChannel)
	}
	return fmt.Sprintf("agent %s, mask leaves out %d of %d bytes of kernel text", short(v.m.Agent), v.m.Mask.Bytes, v.m.Mask.Total), nil
}

func hexDigest(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

func short(digest string) string {
	if len(digest) > 16 {
		return digest[:16] + "…"
	}
	return digest
}

// firstDifference returns the first index at which a and b differ, or -1.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}
