package pi

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/recipe"
	"portcullis/images/squash"
	"portcullis/systemd"
)

// rootInfo is what later stages need to know of a root image; kept beside it.
type rootInfo struct {
	Verity debroot.Verity `json:"verity"`
	Epoch  int64          `json:"epoch"` // time of the newest package file, seconds since 1970

	dir string
}

const rootImage = "root.img"

func (r *rootInfo) image() string { return filepath.Join(r.dir, rootImage) }

// root builds root.img: squashfs, padded, with the verity tree behind it.
func (b *builder) root(ctx context.Context, k *debroot.Kernel) (*rootInfo, error) {
	_, version, err := squash.Tool(ctx)
	if err != nil {
		return nil, err
	}
	rk := debroot.NewKey("pi root", "deb", "debroot", "pi", "recipe", "squash", "verity").Add("recipe", recipeKey(b.recipe)).
		Add("squashfs", version).Add("lab", b.lab()).Add("kernel", filepath.Base(k.Dir))
	for _, p := range b.programs {
		if p.place != "" {
			rk.Add("program "+p.name, p.digest)
		}
	}
	for _, p := range b.packages.Root {
		rk.Add("package", p.SHA256)
	}
	if b.zymbitd() {
		_, vendor, err := b.zymbitPackages()
		if err != nil {
			return nil, err
		}
		rk.Add("vendor's packages", vendor)
	}
	if err := b.eachUnit(func(name string, content []byte) error { rk.Add("unit "+name, string(content)); return nil }); err != nil {
		return nil, err
	}
	for _, f := range b.o.Services {
		sum, err := debroot.DigestFile(f)
		if err != nil {
			return nil, err
		}
		rk.Add("service "+filepath.Base(f), sum)
	}
	done := b.m.Begin("root", rootImage)
	dir, cached, err := b.m.Stage(ctx, "pi-root", rk, func(dir string) error { return b.makeRoot(ctx, k, dir) })
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "info.json"))
	if err != nil {
		return nil, err
	}
	info := &rootInfo{dir: dir}
	if err := json.Unmarshal(data, info); err != nil {
		return nil, &Error{Reason: debroot.ReasonCacheBroken, Msg: "cached root image " + dir, Err: err}
	}
	done(cached)
	return info, nil
}

// recipeKey is everything of the recipe that the root image depends on.
func recipeKey(r *recipe.Recipe) string {
	c := *r
	c.Cmdline, c.Packages, c.Components, c.Boot = nil, nil, nil, recipe.Boot{}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings, numbers and bytes only
	}
	return string(b)
}

func (b *builder) makeRoot(ctx context.Context, k *debroot.Kernel, dir string) error {
	tree, contents, err := b.m.Base(ctx, b.packages, b.recipe)
	if err != nil {
		return err
	}
	defer contents.Close()
	info := rootInfo{Epoch: tree.Time.Unix()}
	if err := b.fill(ctx, k, tree, dir); err != nil {
		return err
	}
	done := b.m.Begin("squashfs", fmt.Sprintf("zstd level %d", b.recipe.Squash.Level))
	img := filepath.Join(dir, rootImage)
	o := squash.Options{Level: b.recipe.Squash.Level, BlockSize: b.recipe.Squash.BlockSize}
	if err := tree.Write(ctx, img, o, b.m.Progress.Step); err != nil {
		return err
	}
	done(false)
	done = b.m.Begin("verity", "hash tree")
	v, err := debroot.AppendVerity(img)
	if err != nil {
		return err
	}
	info.Verity = *v
	if st, err := os.Stat(img); err != nil {
		return err
	} else if st.Size() > card.SystemSize {
		return refuse(debroot.ReasonTooLarge, "the root image has %d MiB, a system slot of the card %d MiB: take packages out", st.Size()>>20, card.SystemSize>>20)
	}
	done(false)
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "info.json"), text, 0o644)
}

// fill turns the unpacked packages into the Pi's root.
func (b *builder) fill(ctx context.Context, k *debroot.Kernel, t *squash.Tree, scratch string) error {
	// Before the accounts are made: one of these files says which there are.
	var units []string
	if b.zymbitd() {
		if err := b.vendor.install(t); err != nil {
			return err
		}
		units = append(units, b.vendor.units...)
		if err := t.WriteFile(tamperDropIn, 0o644, []byte(tamperDropInText)); err != nil {
			return err
		}
	}
	err := b.eachUnit(func(name string, content []byte) error {
		to, isUnit := unitPlace(name)
		// A template is enabled by the name of what it is for, which no image knows.
		if isUnit && !strings.Contains(name, "@.") && debroot.Installable(content) {
			units = append(units, name)
		}
		return t.WriteFile(to, 0o644, content)
	})
	if err != nil {
		return err
	}
	if err := debroot.Populate(ctx, t, b.recipe, k, scratch); err != nil {
		return err
	}
	for _, p := range b.programs {
		if p.place == "" {
			continue
		}
		data, err := os.ReadFile(p.path)
		if err != nil {
			return err
		}
		if err := t.WriteFile(p.place, 0o755, data); err != nil {
			return err
		}
	}
	for _, f := range b.o.Services {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := t.WriteFile(path.Join(ServicesDir, filepath.Base(f)), 0o644, data); err != nil {
			return err
		}
	}
	for _, u := range units {
		if slices.Contains(b.recipe.Mask, u) {
			continue
		}
		if err := debroot.Enable(t, u); err != nil {
			return err
		}
	}
	return debroot.Finish(t, b.recipe, b.lab())
}

// eachUnit calls f for every file of package systemd that belongs to this image, by name.
func (b *builder) eachUnit(f func(name string, content []byte) error) error {
	entries, err := fs.ReadDir(systemd.FS, ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), zymbitUnits) && !b.zymbitd() {
			continue
		}
		content, err := fs.ReadFile(systemd.FS, e.Name())
		if err != nil {
			return err
		}
		if err := f(e.Name(), content); err != nil {
			return err
		}
	}
	return nil
}

// unitPlace says where a file of package systemd goes, and whether it is a unit.
func unitPlace(name string) (to string, unit bool) {
	switch path.Ext(name) {
	case ".nft":
		return path.Join(recipe.Reserved, name), false
	case ".sysusers":
		return path.Join("/usr/lib/sysusers.d", name[:len(name)-len(".sysusers")]+".conf"), false
	case ".tmpfiles":
		return path.Join("/usr/lib/tmpfiles.d", name[:len(name)-len(".tmpfiles")]+".conf"), false
	case ".rules":
		return path.Join("/usr/lib/udev/rules.d", name), false
	}
	return path.Join("/usr/lib/systemd/system", name), true
}
