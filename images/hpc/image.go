package hpc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
	"portcullis/images/pcr"
	"portcullis/images/uki"
)

// TrustFile is written beside the artefacts for 'image verify'.
const TrustFile = "trust.json"

// Largest UKIs in bytes. Firmware loads one over TFTP into RAM as a whole.
const (
	maxUKILab     = 24 << 20
	maxUKIGeneric = 64 << 20
)

func publicKey(s crypto.Signer) ed25519.PublicKey { return s.Public().(ed25519.PublicKey) }

// cmdline puts the verity words in front of the recipe's.
func (b *builder) cmdline(v manifest.Verity) string {
	return strings.Join(append(verityWords(v), b.recipe.Cmdline...), " ")
}

// verityWords tell hpc-init which root to open.
func verityWords(v manifest.Verity) []string {
	return []string{"roothash=" + v.RootHash, fmt.Sprintf("portcullis.verity=%s,%d,%d", v.Salt, v.DataBlocks, v.HashStart)}
}

// image builds everything but root.img into the cache.
func (b *builder) image(ctx context.Context, k *debroot.Kernel, root *rootInfo) (dir string, cached bool, err error) {
	if b.NotBefore.IsZero() {
		b.NotBefore = time.Unix(root.Epoch, 0)
	}
	if b.NotAfter.IsZero() {
		b.NotAfter = b.NotBefore.Add(DefaultValidity)
	}
	t := manifest.Trust{Threshold: b.Threshold, GatewayKey: b.GatewayKey}
	ik := debroot.NewKey("image", "cpio", "debroot", "hpc", "manifest", "pcr", "uki").Add("root", filepath.Base(root.dir)).Add("kernel", filepath.Base(k.Dir)).Add("init", b.digests.Init).
		Add("cmdline", b.cmdline(root.Verity)).Add("modules", b.recipe.Kernel.Initrd).Add("firmware", b.recipe.Kernel.Firmware).
		Add("version", b.Version).Add("not before", b.NotBefore.Unix()).Add("not after", b.NotAfter.Unix())
	for _, s := range b.Signers {
		t.ReleaseKeys = append(t.ReleaseKeys, publicKey(s))
		ik.Add("signer", hex.EncodeToString(publicKey(s)))
	}
	t.ReleaseKeys = append(t.ReleaseKeys, b.TrustKeys...)
	trust, err := t.Encode()
	if err != nil {
		return "", false, err
	}
	ik.Add("trust", string(trust))
	done := b.Begin("image", "initrd, UKI, manifest")
	dir, cached, err = b.Stage(ctx, "image", ik, func(dir string) error { return b.makeImage(ctx, k, root, trust, dir) })
	if err != nil {
		return "", false, err
	}
	done(cached)
	return dir, cached, nil
}

func (b *builder) makeImage(ctx context.Context, k *debroot.Kernel, root *rootInfo, trust []byte, dir string) error {
	initrd, err := b.initrd(ctx, k, trust, root.Epoch)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(k.Image())
	if err != nil {
		return err
	}
	stub, err := os.ReadFile(k.Stub())
	if err != nil {
		return err
	}
	unified, err := uki.Build(stub, uki.Parts{OSRelease: b.osRelease(root), Cmdline: b.cmdline(root.Verity), Uname: k.Release, Kernel: image, Initrd: initrd})
	if err != nil {
		return fmt.Errorf("unified kernel image: %w", err)
	}
	limit := maxUKIGeneric
	if b.lab() {
		limit = maxUKILab
	}
	if len(unified) > limit {
		return refuse(debroot.ReasonTooLarge, "the UKI has %d MiB, more than the %d MiB of profile %s: take modules or firmware out", len(unified)>>20, limit>>20, b.Profile)
	}
	m, err := b.manifest(k, root, unified, image, initrd)
	if err != nil {
		return err
	}
	envelope, err := manifest.Sign(*m, b.Signers...)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{manifest.UKI: unified, manifest.Kernel: image, manifest.Initrd: initrd, manifest.Envelope: envelope, TrustFile: trust} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) manifest(k *debroot.Kernel, root *rootInfo, unified, image, initrd []byte) (*manifest.Manifest, error) {
	m := &manifest.Manifest{
		Schema: manifest.Schema, Image: "portcullis-" + b.Profile, Profile: b.Profile, LabChannel: b.recipe.LabChannel,
		Version: b.Version, NotBefore: b.NotBefore.UTC().Truncate(time.Second), NotAfter: b.NotAfter.UTC().Truncate(time.Second),
		Verity: root.Verity, Cmdline: b.cmdline(root.Verity), Agent: root.Agent, Mask: root.Mask,
	}
	for _, a := range []struct {
		name string
		data []byte
	}{{manifest.UKI, unified}, {manifest.Kernel, image}, {manifest.Initrd, initrd}} {
		d, err := manifest.Describe(a.name, bytes.NewReader(a.data))
		if err != nil {
			return nil, err
		}
		m.Artefacts = append(m.Artefacts, d)
	}
	m.Artefacts = append(m.Artefacts, root.Artefact)
	for _, p := range b.packages.Used() {
		m.Packages = append(m.Packages, p.String())
	}
	sort.Strings(m.Packages)
	var err error
	if m.UKI, err = uki.Describe(unified); err != nil {
		return nil, err
	}
	if m.UKI.KernelVersion != k.Release {
		return nil, refuse(debroot.ReasonCacheBroken, "the kernel says it is %s, its package says %s", m.UKI.KernelVersion, k.Release)
	}
	predicted, err := pcr.Predict(unified)
	if err != nil {
		return nil, err
	}
	m.PCR = predicted.Map()
	return m, nil
}

// publish copies the artefacts to the output directory, the manifest last: a
// reader that finds a new manifest finds everything it names.
func (b *builder) publish(dir string, root *rootInfo) (*manifest.Manifest, [32]byte, error) {
	var none [32]byte
	if err := os.MkdirAll(b.OutDir, 0o755); err != nil {
		return nil, none, err
	}
	done := b.Begin("write", b.OutDir)
	for _, name := range []string{manifest.Root, manifest.Kernel, manifest.Initrd, manifest.UKI, TrustFile, manifest.Envelope} {
		from := dir
		if name == manifest.Root {
			from = root.dir
		}
		if err := debroot.CopyFile(filepath.Join(b.OutDir, name), filepath.Join(from, name), 0o644); err != nil {
			return nil, none, err
		}
	}
	done(false)
	envelope, err := os.ReadFile(filepath.Join(dir, manifest.Envelope))
	if err != nil {
		return nil, none, err
	}
	trust, err := os.ReadFile(filepath.Join(dir, TrustFile))
	if err != nil {
		return nil, none, err
	}
	t, err := manifest.ParseTrust(trust)
	if err != nil {
		return nil, none, err
	}
	t.Threshold = 1 // co-signers may add theirs later; ours is on it
	v, err := manifest.Open(envelope, t, b.NotBefore, b.Version)
	if err != nil {
		return nil, none, &Error{Reason: debroot.ReasonCacheBroken, Msg: "the finished manifest does not open", Err: err}
	}
	return &v.Manifest, v.Digest, nil
}
