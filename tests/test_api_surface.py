"""The public API, frozen: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import fastfss
import fastfss.data
import fastfss.data.augment
import fastfss.encoders
import fastfss.methods
import fastfss.ops
import fastfss.protocols
import fastfss.text
import fastfss.training
import fastfss.video
import fastfss.weights

PUBLIC = {
    fastfss: """
        AMP Annotation CANet CueFusion DCAMA DENet GuidedEarly GuidedLate HSNet IMRHSNet Label
        LabelNotFoundError LabelPropagation MLC PANet PFENet PGNet PPNet Result SSP Task
        create_encoder create_model list_encoders list_models load_clip model_info
    """,
    fastfss.ops: """
        Explanation center_pivot_block center_pivot_conv4d dense_correlation dense_match
        dense_match_sums explain masked_average_pool prototype_match
    """,
    fastfss.methods: """
        AMP CANet ClassLogits CueFusion DCAMA DENet FCN32s Features FewShotSegmenter GraphConfig
        GUIDED_NETWORKS GuidedEarly GuidedLate GuidedSegmenter HSNet IMRHSNet IMROutput
        InteractiveEarly InteractiveLate LabelPropagation LatentClasses MethodInfo
        MiningConfig MLC MLCOutput NAMED_MODELS NamedModel PANet PANetOutput PartConfig
        PFENet PFENetOutput PGNet PPNet PPNetOutput Prediction PropagationConfig
        PublishedNetwork PublishedScore Rectification
        SelfSupportConfig SSP SSPOutput Unlabelled create_model list_models model_info
        published_state
    """,
    fastfss.protocols: """
        ConfusionMeter DENetBinaryMeter DENetFullMeter Episode EpisodeCounts EpisodeList
        Evaluation Figures FoldMeter LeakReport ListedEpisode Meter PANetMeter
        PFENetMeter PROTOCOLS Protocol check_leaks denet_episodes denet_images
        draw_episodes evaluate figures_of fold_classes fss1000_episodes get_protocol
        hsnet_drawn_episodes hsnet_listed_episodes panet_episodes pfenet_episodes
        ssp_episodes
    """,
    fastfss.data: """
        CachedImages ImageLike Item MaskLike MaskSet Video VideoSet box_masks dense_masks
        dilate_scribble in_order letterbox_image letterbox_labels letterbox_size list_sets
        open_davis open_set read_image read_label_map read_mask read_support_folder
        scribble_masks
    """,
    fastfss.training: """
        FeatureCache Recipe TrainingResult build_cache build_model list_recipes load_recipe
        recipe_digest recipe_from train
    """,
    fastfss.text: """
        ClipTower Label LabelNotFoundError TextLabels activation_maps decode encode label_names
        load_clip load_tower tokenize tower_of
    """,
    fastfss.video: """
        Event FrameResult Limits LiveSource MemoryConfig VideoSession keep_freed_memory open
        read_stream
    """,
    fastfss.data.augment: """
        CenterCrop Compose HorizontalFlip JointTransform LongSide RandomArea RandomCrop
        RandomScale RandomStretch Square VerticalFlip
    """,
}


def test_the_public_names_are_these() -> None:
    for module, names in PUBLIC.items():
        assert sorted(module.__all__) == sorted(names.split()), module.__name__
        assert all(hasattr(module, name) for name in module.__all__)
