"""Names of the published weights of NestedMorph."""

IGNORED = r"num_batches_tracked$|^unet\.decoder_3\.(?!layer_up)|\.mlp\d\.norm[23]\."
"""Entries that no output depends on."""

POINTWISE = (
    r"\.(keys|queries|values|reprojection|proj_[12]|spatial_gating_unit\.conv1|last_layer)\.weight$"
    r"|\.layer_lka_\d\.mlp\.fc[12]\.weight$"
)
"""Linear maps that are published as convolutions of width one."""

RULES = (
    *(
        (rf"^encoder\.{number - 1}\.{ours}\.", f"unet.backbone.{name}.")
        for number in range(1, 5)
        for ours, name in (
            ("proj", f"patch_embed{number}.proj"),
            ("embed_norm", f"patch_embed{number}.norm"),
            ("block", f"block{number}.0"),
            ("norm", f"norm{number}"),
        )
    ),
    (r"^features\.", "unet.decoder_0.last_layer."),
    (r"^level3\.", "unet.decoder_3.layer_up."),
    (r"^unused\.", "level3."),
    (r"^level(\d)\.linear\.", r"unet.decoder_\1.x1_linear."),
    (r"^level(\d)\.norm\.", r"unet.decoder_\1.ag_attn_norm."),
    (r"^level(\d)\.up\.", r"unet.decoder_\1.layer_up."),
    (r"^level(\d)\.gate\.", r"unet.decoder_\1.ag_attn."),
    (r"\.ag_attn\.local\.([0-5])\.", r".ag_attn.multi.local.dconv.\1."),
    (r"\.ag_attn\.local\.6\.", ".ag_attn.multi.local.proj.0."),
    (r"\.ag_attn\.local\.7\.", ".ag_attn.multi.local.proj.1."),
    (r"\.ag_attn\.whole\.", ".ag_attn.multi.global_.proj."),
    (r"\.ag_attn\.fused_norm\.", ".ag_attn.multi.bn."),
    (r"\.ag_attn\.proj_norm\.", ".ag_attn.bn."),
    (r"\.ag_attn\.out\.", ".ag_attn.conv_block.0."),
    (r"\.ag_attn\.out_norm\.", ".ag_attn.bn_2."),
    (r"^level([01])\.blocks\.0\.", r"unet.decoder_\1.layer_lka_1."),
    (r"^level([01])\.blocks\.1\.", r"unet.decoder_\1.layer_lka_2."),
    (r"^level([23])\.blocks\.0\.", r"unet.decoder_\1.tran_layer1."),
    (r"^level([23])\.blocks\.1\.", r"unet.decoder_\1.tran_layer2."),
    (r"(layer_lka_\d)\.(fc\d|dwconv)\.", r"\1.mlp.\2."),
    (r"(layer_lka_\d)\.(proj_\d)\.", r"\1.attn.\2."),
    (r"(layer_lka_\d)\.near\.", r"\1.attn.spatial_gating_unit.conv0."),
    (r"(layer_lka_\d)\.far\.", r"\1.attn.spatial_gating_unit.conv_spatial."),
    (r"(layer_lka_\d)\.weigh\.", r"\1.attn.spatial_gating_unit.conv1."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
)
"""Patterns and replacements that turn our names into the published ones, in order."""
