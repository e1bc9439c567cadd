package pi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"portcullis/images/blockmap"
	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/manifest"
)

// Files of a built image. The files of the boot partition lie below BootDir.
const (
	CardFile     = "pi.img.zst"       // the card, compressed
	BlockMapFile = "pi.blockmap.json" // its ranges and their digests, signed
	BundleFile   = "pi" + bundle.Extension
	SBOMFile     = "pi.sbom.json" // SPDX 2.3
	SummaryFile  = "pi.json"
	BootDir      = "boot"
)

// publicFiles are copied out, the summary last: a reader that finds it finds the rest.
var publicFiles = []string{CardFile, BlockMapFile, BundleFile, SBOMFile, SummaryFile}

// image builds everything but the root file system into the cache.
func (b *builder) image(ctx context.Context, k *debroot.Kernel, root *rootInfo) (dir string, cached bool, err error) {
	ik := debroot.NewKey("pi image", "blockmap", "bundle", "card", "cpio", "debroot", "fat", "gpt", "manifest", "pcr", "pi", "uki").
		Add("root", filepath.Base(root.dir)).Add("kernel", filepath.Base(k.Dir)).
		Add("init", b.program(initProgram).digest).Add("cmdline", b.cmdline(root)).Add("modules", b.recipe.Kernel.Initrd).Add("late modules", b.recipe.Kernel.Late).
		Add("trees", b.recipe.Kernel.DeviceTrees).Add("overlay", string(b.recipe.Kernel.Overlay)).
		Add("boot", strings.Join(b.recipe.Boot.Files, "\n")).Add("config", string(b.recipe.Boot.Config)).
		Add("model", b.o.Model).Add("profile", b.o.Profile)
	info, err := b.info()
	if err != nil {
		return "", false, err
	}
	text, err := info.Encode()
	if err != nil {
		return "", false, refuse(debroot.ReasonOptions, "%v", err)
	}
	_, vendor, err := b.zymbitPackages()
	if err != nil {
		return "", false, err
	}
	ik.Add("vendor's packages", vendor).Add("info", string(text)).Add("boot key", b.o.Keys.Boot.N.Text(16))
	for _, p := range b.programs {
		ik.Add("program "+p.name, p.digest)
	}
	done := b.m.Begin("image", "boot files, card, update")
	dir, cached, err = b.m.Stage(ctx, "pi-image", ik, func(dir string) error { return b.makeImage(ctx, k, root, dir) })
	if err != nil {
		return "", false, err
	}
	done(cached)
	return dir, cached, nil
}

func (b *builder) makeImage(ctx context.Context, k *debroot.Kernel, root *rootInfo, dir string) error {
	done := b.m.Begin("boot", k.Release)
	p, err := b.boot(ctx, k, root)
	if err != nil {
		return err
	}
	for name, data := range p.files {
		to := filepath.Join(dir, BootDir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	// The stage's directory is renamed into place when all is done: scratch must be gone by then.
	scratch, err := os.MkdirTemp(b.m.CacheDir, ".card-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	boot := filepath.Join(scratch, bundle.Boot)
	if err := p.fat(boot, card.LabelBootA, root); err != nil {
		return err
	}
	img := filepath.Join(scratch, "pi.img")
	if err := b.disk(img, boot, p, root, scratch); err != nil {
		return err
	}
	done(false)
	if err := b.packCard(img, dir); err != nil {
		return err
	}
	m, err := b.bundle(k, p, root, boot, filepath.Join(dir, BundleFile))
	if err != nil {
		return err
	}
	sbom, err := b.sbom(root, m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, SBOMFile), sbom, 0o644); err != nil {
		return err
	}
	return b.summarise(dir, m)
}

// packCard compresses the card and writes its signed map.
func (b *builder) packCard(img, dir string) error {
	done := b.m.Begin("card", "compress, map")
	in, err := os.Open(img)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, CardFile))
	if err != nil {
		return err
	}
	defer out.Close()
	m, err := blockmap.Pack(out, in, st.Size(), b.title(), b.m.Progress.Step)
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	signed, err := m.Sign(b.o.Keys.Release)
	if err != nil {
		return err
	}
	done(false)
	return os.WriteFile(filepath.Join(dir, BlockMapFile), signed, 0o644)
}

// title is what flash shows of the image.
func (b *builder) title() string {
	return fmt.Sprintf("Portcullis Pi image, %s, %s, release %d", b.o.Model, b.o.Profile, b.o.Sequence)
}

// bundle writes the update of this release.
func (b *builder) bundle(k *debroot.Kernel, p *bootPartition, root *rootInfo, boot, to string) (*bundle.Manifest, error) {
	done := b.m.Begin("update", "compress, sign")
	policy := sha256.Sum256(p.policy)
	m := bundle.Manifest{
		Model: b.o.Model, Profile: b.o.Profile, LabChannel: b.lab(), Sequence: b.o.Sequence, Kernel: k.Release, Cmdline: p.cmdline,
		Verity:     manifest.Verity{RootHash: root.Verity.RootHash, Salt: root.Verity.Salt, DataBlocks: root.Verity.DataBlocks, HashStart: root.Verity.DataBlocks},
		BootDigest: hex.EncodeToString(p.digest[:]), Policy: hex.EncodeToString(policy[:]), Packages: b.packagesDigest(),
	}
	bootFile, err := os.Open(boot)
	if err != nil {
		return nil, err
	}
	defer bootFile.Close()
	rootFile, err := os.Open(root.image())
	if err != nil {
		return nil, err
	}
	defer rootFile.Close()
	out, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	signed, err := bundle.Write(out, m, bootFile, rootFile, b.o.Keys.Release)
	if err != nil {
		return nil, err
	}
	done(false)
	return &signed, out.Close()
}

// packagesDigest is the SHA-256 of the sorted name=version lines of what the image is made of.
func (b *builder) packagesDigest() string {
	h := sha256.New()
	for _, p := range b.packages.Used() {
		fmt.Fprintln(h, p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// publish copies the image out of the cache.
func (b *builder) publish(dir string) (*Result, error) {
	if err := os.MkdirAll(b.o.OutDir, 0o755); err != nil {
		return nil, err
	}
	done := b.m.Begin("write", b.o.OutDir)
	boot := filepath.Join(b.o.OutDir, BootDir)
	if err := os.RemoveAll(boot); err != nil {
		return nil, err
	}
	if err := os.CopyFS(boot, os.DirFS(filepath.Join(dir, BootDir))); err != nil {
		return nil, err
	}
	for _, name := range publicFiles {
		if err := debroot.CopyFile(filepath.Join(b.o.OutDir, name), filepath.Join(dir, name), 0o644); err != nil {
			return nil, err
		}
	}
	done(false)
	text, err := os.ReadFile(filepath.Join(dir, SummaryFile))
	if err != nil {
		return nil, err
	}
	r := &Result{}
	if err := json.Unmarshal(text, &r.Summary); err != nil {
		return nil, &Error{Reason: debroot.ReasonCacheBroken, Msg: "cached image " + dir, Err: err}
	}
	r.Dir = b.o.OutDir
	return r, nil
}
