package netns

// Remove ends every process in the namespace name and removes it, whoever made
// it. It is for what a maker that died left under a name known to its heir.
func Remove(name string) error { return remove(name) }
