package hpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"portcullis/images/manifest"
	"portcullis/images/modlist"
	"portcullis/images/recipe"
	"portcullis/images/squash"
	"portcullis/images/verity"
)

// rootInfo is what later stages need to know of a root image; kept beside it.
type rootInfo struct {
	Artefact  manifest.Artefact       `json:"artefact"`
	Verity    manifest.Verity         `json:"verity"`
	Agent     string                  `json:"agent_sha256"`
	Mask      manifest.KernelTextMask `json:"mask"`
	OSRelease string                  `json:"os_release"`
	Epoch     int64                   `json:"epoch"` // time of the newest package file, seconds since 1970

	dir string
}

// root builds root.img: squashfs, padded, with the verity tree behind it.
func (b *builder) root(ctx context.Context, k *kernel) (*rootInfo, error) {
	_, version, err := squash.Tool(ctx)
	if err != nil {
		return nil, err
	}
	rk := newKey("root", "deb", "hpc", "ktextmask", "manifest", "modlist", "recipe", "squash", "verity").add("recipe", recipeKey(b.recipe)).add("squashfs", version).
		add("profile", b.Profile).add("agent", b.digests.Agent).add("lab", b.digests.Lab).add("kernel", filepath.Base(k.dir))
	for _, p := range b.rootDebs {
		rk.add("package", p.SHA256)
	}
	done := b.begin("root", "root.img")
	dir, cached, err := b.stage(ctx, "root", rk, func(dir string) error { return b.makeRoot(ctx, k, dir) })
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "info.json"))
	if err != nil {
		return nil, err
	}
	info := &rootInfo{dir: dir}
	if err := json.Unmarshal(data, info); err != nil {
		return nil, &Error{ReasonCacheBroken, "cached root image " + dir, err}
	}
	done(cached)
	return info, nil
}

// recipeKey is everything of the recipe that the root image depends on.
func recipeKey(r *recipe.Recipe) string {
	c := *r
	c.Cmdline, c.Packages, c.Components = nil, nil, nil
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings, numbers and bytes only
	}
	return string(b)
}

func (b *builder) makeRoot(ctx context.Context, k *kernel, dir string) error {
	basePath, err := b.base(ctx)
	if err != nil {
		return err
	}
	f, err := os.Open(basePath)
	if err != nil {
		return err
	}
	defer f.Close()
	tree, err := readBase(f)
	if err != nil {
		return err
	}
	info := rootInfo{Agent: b.digests.Agent, Epoch: tree.Time.Unix()}
	if err := b.fill(ctx, k, tree, &info, dir); err != nil {
		return err
	}
	done := b.begin("squashfs", fmt.Sprintf("zstd level %d", b.recipe.Squash.Level))
	img := filepath.Join(dir, manifest.Root)
	o := squash.Options{Level: b.recipe.Squash.Level, BlockSize: b.recipe.Squash.BlockSize}
	if err := tree.Write(ctx, img, o, b.Progress.Step); err != nil {
		return err
	}
	done(false)
	done = b.begin("verity", "hash tree")
	if err := appendVerity(img, &info); err != nil {
		return err
	}
	done(false)
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "info.json"), text, 0o644)
}

// fill turns the unpacked packages into the PC's root.
func (b *builder) fill(ctx context.Context, k *kernel, t *squash.Tree, info *rootInfo, scratch string) error {
	r := b.recipe
	for _, d := range r.Dirs {
		if err := t.Mkdir(d.Path, d.Mode); err != nil {
			return fmt.Errorf("%s: %w", d.At, err)
		}
	}
	if err := writeUsers(t, r); err != nil {
		return err
	}
	for _, j := range r.Join {
		if err := join(t, j); err != nil {
			return fmt.Errorf("%s: %w", j.At, err)
		}
	}
	for _, f := range r.Files {
		if err := t.WriteFile(f.Path, f.Mode, f.Content); err != nil {
			return fmt.Errorf("%s: %w", f.At, err)
		}
	}
	for _, l := range r.Links {
		if err := t.Link(l.Path, l.Target); err != nil {
			return fmt.Errorf("%s: %w", l.At, err)
		}
	}
	if err := b.rootModules(ctx, k, t, scratch); err != nil {
		return err
	}
	if err := b.ownFiles(ctx, k, t, info); err != nil {
		return err
	}
	for _, u := range r.Enable {
		if err := enable(t, u); err != nil {
			return err
		}
	}
	for _, u := range r.Mask {
		if err := mask(t, u); err != nil {
			return err
		}
	}
	// Files are as the packages left them: no service has to bring /etc up to date.
	if err := t.WriteFile("/etc/.updated", 0o644, nil); err != nil {
		return err
	}
	os, err := t.Read("/etc/os-release")
	if err != nil {
		return err
	}
	info.OSRelease = string(os)
	dropSetID(t)
	return guard(t, b.Profile)
}

// dropSetID takes the setuid and setgid bits off every program: nobody but root
// runs one of them here, and containers bring their own.
func dropSetID(t *squash.Tree) {
	for _, p := range t.Paths() {
		if n := t.Get(p); n != nil && n.Kind == squash.File {
			n.Mode &^= 0o6000
		}
	}
}

// ownFiles adds the agent, the mask of the kernel's text and, for the lab, its channel.
func (b *builder) ownFiles(ctx context.Context, k *kernel, t *squash.Tree, info *rootInfo) error {
	add := func(to, from string) error {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return t.WriteFile(to, 0o755, data)
	}
	if err := add(AgentPath, b.Binaries.Agent); err != nil {
		return err
	}
	if b.recipe.LabChannel {
		if err := add(LabPath, b.Binaries.Lab); err != nil {
			return err
		}
	}
	about, err := b.aboutKernel(ctx, k)
	if err != nil {
		return err
	}
	info.Mask = about.Mask
	if err := t.WriteFile(modlist.Path, 0o644, about.allow); err != nil {
		return err
	}
	return t.WriteFile(MaskPath, 0o644, about.mask)
}

// rootModules puts the chosen kernel modules, their index and firmware in place.
func (b *builder) rootModules(ctx context.Context, k *kernel, t *squash.Tree, scratch string) error {
	paths, err := k.modules.choose(b.recipe.Kernel.Root)
	if err != nil {
		return err
	}
	// The index is made over exactly what is shipped.
	base := filepath.Join(scratch, "modules")
	defer os.RemoveAll(base)
	dir := filepath.Join(base, "lib", "modules", k.release)
	for _, p := range append([]string{"modules.builtin", "modules.builtin.modinfo", "modules.order"}, paths...) {
		to := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Link(filepath.Join(k.moduleTree(), p), to); err != nil {
			return err
		}
	}
	if err := depmod(ctx, base, k.release); err != nil {
		return err
	}
	index, err := indexFiles(dir)
	if err != nil {
		return err
	}
	for _, p := range append(index, paths...) {
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return err
		}
		if err := t.WriteFile(path.Join("/usr/lib/modules", k.release, p), 0o644, data); err != nil {
			return err
		}
	}
	files, err := k.pickFirmware(ctx, b.recipe, paths)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if err := t.WriteFile(path.Join("/usr/lib/firmware", n), 0o644, files[n]); err != nil {
			return err
		}
	}
	return nil
}

// join writes the files that match one after the other, each ending in a line feed.
func join(t *squash.Tree, j recipe.Join) error {
	var out bytes.Buffer
	for _, p := range t.Paths() {
		if !recipe.MatchPath(j.From, p) {
			continue
		}
		b, err := t.Read(p)
		if err != nil {
			return err
		}
		out.Write(b)
		if !bytes.HasSuffix(b, []byte("\n")) {
			out.WriteByte('\n')
		}
	}
	if out.Len() == 0 {
		return refuse(ReasonMissing, "no file matches %q", j.From)
	}
	return t.WriteFile(j.Path, 0o644, out.Bytes())
}

// appendVerity pads the squashfs to whole blocks and writes the hash tree
// behind it. The salt is made of the squashfs itself, so that equal images have
// equal root hashes and different ones share no digest.
func appendVerity(img string, info *rootInfo) error {
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := (st.Size() + verity.BlockSize - 1) / verity.BlockSize * verity.BlockSize
	if err := f.Truncate(size); err != nil {
		return err
	}
	h := sha256.New()
	io.WriteString(h, "portcullis verity salt v1\n")
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	salt := h.Sum(nil)
	tree, err := verity.Build(f, size, salt)
	if err != nil {
		return fmt.Errorf("verity tree: %w", err)
	}
	if _, err := f.WriteAt(tree.Hashes, size); err != nil {
		return err
	}
	info.Verity = manifest.Verity{RootHash: tree.Root(), Salt: hex.EncodeToString(salt), DataBlocks: tree.DataBlocks, HashStart: tree.DataBlocks}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if info.Artefact, err = manifest.Describe(manifest.Root, f); err != nil {
		return err
	}
	return f.Close()
}

// osRelease is what the UKI says it is: the distribution's words and ours.
func (b *builder) osRelease(info *rootInfo) []byte {
	var out strings.Builder
	for _, line := range strings.Split(info.OSRelease, "\n") {
		if key, _, ok := strings.Cut(line, "="); ok && (key == "ID" || key == "VERSION_ID" || key == "VERSION_CODENAME") {
			out.WriteString(line + "\n")
		}
	}
	fmt.Fprintf(&out, "NAME=\"Portcullis PC image\"\nPRETTY_NAME=\"Portcullis PC image (%s)\"\nIMAGE_ID=portcullis-%s\nIMAGE_VERSION=%d\n", b.Profile, b.Profile, b.Version)
	return []byte(out.String())
}
